"""Servers as processes with what they cost, and a client that loses no answer: what benchmarks share.

Latency counts from the time a request was due, which is drawn beforehand (Poisson): a server that stalls
cannot hide it (no coordinated omission).
"""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop
from numpy.typing import NDArray

START_SECONDS, END_SECONDS = 120, 10
# Of the open loop, whose client is never idle: a process of a real-time class that never rests is made to,
# for 50 ms of each second.
BUSY_SECONDS, REST_SECONDS = 0.8, 0.08


def act(body: Mapping[str, Any]) -> bytes:
    """An act request."""
    content = json.dumps(body).encode()
    return (
        b"POST /v1/act HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(content), content)
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@dataclass
class Server:
    """A running server: its process and all that descend from it."""

    port: int
    pid: int

    def processes(self) -> list[Path]:
        parents: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = {self.pid}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return [Path("/proc") / str(pid) for pid in found]

    def cpu(self) -> NDArray[np.float64]:
        """Seconds that they have worked: in all, and of these in the kernel."""
        user = kernel = 0
        for process in self.processes():
            with suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                user, kernel = user + int(fields[11]), kernel + int(fields[12])
        return np.array([user + kernel, kernel]) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB that they hold, each page once."""
        kib = 0
        for process in self.processes():
            with suppress(OSError):
                rollup = (process / "smaps_rollup").read_text()
                kib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return kib / 1024

    def answers(self, request: bytes) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(request)
                return connection.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def end(self) -> None:
        """Asks all its processes to end, and after a while ends them."""
        processes = self.processes()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for path in processes:
                with suppress(ProcessLookupError):
                    os.kill(int(path.name), number)
            deadline = time.monotonic() + END_SECONDS
            while any(_alive(path) for path in processes) and time.monotonic() < deadline:
                time.sleep(0.05)


def _alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def running(
    command: Sequence[str], port: int, first: bytes, environment: Mapping[str, str] | None = None
) -> Generator[Server]:
    """A server from when it answers the first request well until the end of the block."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        start_new_session=True,
    )
    server = Server(port, process.pid)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.answers(first):
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                words = process.stderr.read().decode()[-2000:] if process.stderr and ended else ""
                raise SystemExit(f"{' '.join(command)} does not serve: {words}")
            time.sleep(0.1)
        yield server
    finally:
        server.end()
        process.wait()


class Line(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.due = 0.0
        self.asked = 0
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write

    def send(self, due: float) -> None:
        self.due = due
        self.asked, request = self.client.next_request()
        self._write(request)

    def data_received(self, data: bytes) -> None:
        if self._data:
            data = self._data + data
        body = _body(data)
        if body is None:
            self._data = data
        else:
            self._data = b""
            self.client.answered(self, data[9:12] == b"200", body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.lost += 1


def _body(answer: bytes) -> bytes | None:
    """The body of an answer, which may be chunked; None while something is missing."""
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return None
    start = answer.find(b"content-length: ", 0, head)
    if start < 0:
        return answer[head + 4 :] if answer.endswith(b"\r\n0\r\n\r\n") else None
    end = head + 4 + int(answer[start + 16 : answer.find(b"\r\n", start)])
    return answer[head + 4 : end] if len(answer) >= end else None


async def _until(moment: float) -> None:
    # Sleeps are coarse: what is due within the next moments is waited for by yielding.
    ahead = moment - time.perf_counter()
    while ahead > 0:
        await asyncio.sleep(ahead - 0.0005 if ahead > 0.001 else 0)
        ahead = moment - time.perf_counter()


class Client:
    """Asks on many connections, and keeps every latency.

    Attributes:
        late: seconds between when a request was due and when this client came to it.
        failed: answers that are not 200, or not as `check` wants them.
        lost: connections that ended, and requests without an answer.

    """

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self.port, self._requests = port, requests
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.failed = self.lost = 0
        self._sent = 0
        self._idle: deque[Line] = deque()
        self._waiting: deque[float] = deque()
        self._until = 0.0

    async def connect(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, line = await loop.create_connection(lambda: Line(self), "127.0.0.1", self.port)
            self._idle.append(line)

    def next_request(self) -> tuple[int, bytes]:
        """The number of a request, and its bytes."""
        number = self._sent
        self._sent += 1
        return number, self._requests[number % len(self._requests)]

    def check(self, number: int, body: bytes) -> bool:
        """Whether an answer is as it must be."""
        return True

    def answered(self, line: Line, fine: bool, body: bytes) -> None:
        now = time.perf_counter()
        self.latencies.append(now - line.due)
        self.failed += not (fine and self.check(line.asked, body))
        if self._until:
            if now < self._until:
                line.send(now)
        elif self._waiting:
            line.send(self._waiting.popleft())
        else:
            self._idle.append(line)

    async def without_pause(self, seconds: float) -> None:
        """Each connection asks again as soon as it has its answer."""
        self._until = time.perf_counter() + seconds
        lines, self._idle = list(self._idle), deque()
        for line in lines:
            line.send(time.perf_counter())
        await asyncio.sleep(seconds)
        await self._rest()

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Asks at times drawn beforehand, with a short rest now and then."""
        rng = np.random.default_rng(0)
        due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
        due += time.perf_counter() + 0.05 + REST_SECONDS * (due // BUSY_SECONDS)
        for moment in due.tolist():
            await _until(moment)
            self.late.append(time.perf_counter() - moment)
            if self._idle:
                self._idle.popleft().send(moment)
            else:
                self._waiting.append(moment)
        await self._rest()

    async def _rest(self) -> None:
        """Waits for answers that are due, as long as any come."""
        seen, deadline = -1, 0.0
        while self._waiting or len(self.latencies) < self._sent:
            if len(self.latencies) > seen:
                seen, deadline = len(self.latencies), time.perf_counter() + END_SECONDS
            if time.perf_counter() > deadline:
                self.lost += len(self._waiting) + self._sent - len(self.latencies)
                return
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Cost:
    """Of one server and one kind of request: seconds of processor time for each answer.

    Attributes:
        cpu: of the server's processes.
        kernel: of that, in the kernel.
        client: of the client, which must be less than the server's for the rate to be the server's.
        rate: answers a second.
        failed: answers that were wrong or did not come.

    """

    cpu: float
    kernel: float
    client: float
    rate: float
    failed: int


def without_pause(server: Server, requests: Sequence[bytes], connections: int, seconds: float) -> Cost:
    """What an answer costs while every connection asks without pause."""

    async def run() -> Client:
        client = Client(server.port, requests)
        await client.connect(connections)
        await client.without_pause(seconds)
        return client

    before, own, begun = server.cpu(), _own_cpu(), time.perf_counter()
    client = uvloop.run(run())
    number, spent = max(1, len(client.latencies)), server.cpu() - before
    return Cost(
        spent[0] / number,
        spent[1] / number,
        (_own_cpu() - own) / number,
        number / (time.perf_counter() - begun),
        client.failed + client.lost,
    )


def open_loop(
    server: Server, requests: Sequence[bytes], connections: int, rate: float, seconds: float
) -> Client:
    """A client that has asked at that rate for so long."""

    async def run() -> Client:
        client = Client(server.port, requests)
        await client.connect(connections)
        await client.open_loop(rate, seconds)
        return client

    return uvloop.run(run())


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
