"""The policy server next to the same policy behind uvicorn, FastAPI and Ray Serve, and to bare HTTP.

Usage: python benchmarks/policy_server.py [--seconds S] [--rate R] [--only NAME …]

CPU per request is that of all processes of a server, measured while 64 connections ask without pause.
Latency is measured open loop: requests are sent at times drawn beforehand (Poisson), whatever the server
does, and count from the time they were due, so that a server that stalls cannot hide it. Servers that cannot
take the rate get half of what they took without pause, and the table says so.
"""

import argparse
import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop

from ratchet.policies import PolicySpec, SpaceSpec, parameter_shapes
from ratchet.policies.artifact import PolicyLineage, make, write_folder
from ratchet.policies.spec import value_shapes

CONNECTIONS = 64
CONTESTANTS = Path(__file__).with_name("policy_contestants.py")
NAMES = ("floor", "ratchet", "uvicorn", "fastapi", "ray")
BATCHES = (1, 4, 16, 64, 256)
SPEC = PolicySpec(
    observation=SpaceSpec(kind="Box", shape=(4,), low=-4.8, high=4.8),
    action=SpaceSpec(kind="Discrete", n=2, dtype="int64"),
)


def policy(folder: Path, seed: int) -> None:
    """CartPole's network, 64x64, with weights drawn by seed."""
    rng = np.random.default_rng(seed)
    shapes = {**parameter_shapes(SPEC), **value_shapes(SPEC)}
    parameters = {
        name: (rng.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()
    }
    write_folder(make(SPEC, parameters, np.zeros((0, 4), np.float32), PolicyLineage()), folder)


def request(rows: int) -> bytes:
    """An act request of one observation, or of a batch."""
    rng = np.random.default_rng(rows)
    observations = rng.normal(size=(rows, 4)).round(4).tolist()
    body = json.dumps(
        {"observation": observations[0]} if rows == 1 else {"observations": observations}
    ).encode()
    return (
        b"POST /v1/act HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


# Servers


@dataclass
class Server:
    """A running contestant."""

    port: int
    pid: int

    def processes(self) -> list[Path]:
        """Its process and all that descend from it."""
        parents: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        found = {self.pid}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return [Path("/proc") / str(pid) for pid in found]

    def cpu(self) -> float:
        """Seconds that they have worked."""
        ticks = 0
        for process in self.processes():
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB that they hold, each page once."""
        kib = 0
        for process in self.processes():
            rollup = (process / "smaps_rollup").read_text()
            kib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return kib / 1024


@contextmanager
def serving(name: str, folder: Path, token: Path) -> Iterator[Server]:
    """A server from its start until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(CONTESTANTS), name, str(port), str(folder)]
    if name == "ratchet":
        program = Path(sys.executable).with_name("ratchet-inference")
        command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", str(folder)]
        command += ["--admin-token-file", str(token), "--drain-delay-seconds", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    server = Server(port, process.pid)
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                words = (
                    process.stderr.read().decode()[-2000:]
                    if process.stderr and process.poll() is not None
                    else ""
                )
                raise SystemExit(f"{name} does not serve: {words}")
            time.sleep(0.2)
        yield server
    finally:
        for path in server.processes():
            try:
                os.kill(int(path.name), signal.SIGTERM)
            except ProcessLookupError:
                continue
        process.wait()


def answers(port: int) -> bool:
    """Whether it answers an act request well."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(request(1))
            return connection.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


# The client


def _whole(answer: bytes) -> bool:
    """Whether nothing is missing of an answer, which may be chunked."""
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return False
    start = answer.lower().find(b"content-length:", 0, head)
    if start < 0:
        return answer.endswith(b"\r\n0\r\n\r\n")
    return len(answer) >= head + 4 + int(answer[start + 15 : answer.find(b"\r\n", start)])


class Line(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.due = 0.0
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, due: float) -> None:
        self.due = due
        self.transport.write(self.client.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        if _whole(data):
            self._data = b""
            self.client.answered(self, data[9:12] == b"200")
        else:
            self._data = data

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.lost += 1


async def _until(moment: float) -> None:
    # Sleeps are coarse: what is due within the next moments is waited for by yielding.
    ahead = moment - time.perf_counter()
    while ahead > 0:
        await asyncio.sleep(ahead - 0.0005 if ahead > 0.001 else 0)
        ahead = moment - time.perf_counter()


class Client:
    """Asks on many connections, and keeps every latency."""

    def __init__(self, port: int, request_: bytes) -> None:
        self.port, self.request = port, request_
        self.latencies: list[float] = []
        self.failed = self.lost = 0
        self.idle: deque[Line] = deque()
        self.waiting: deque[float] = deque()
        self.until = 0.0

    async def connect(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, line = await loop.create_connection(lambda: Line(self), "127.0.0.1", self.port)
            self.idle.append(line)

    def answered(self, line: Line, fine: bool) -> None:
        now = time.perf_counter()
        self.latencies.append(now - line.due)
        self.failed += not fine
        if self.until:
            if now < self.until:
                line.send(now)
        elif self.waiting:
            line.send(self.waiting.popleft())
        else:
            self.idle.append(line)

    async def without_pause(self, seconds: float) -> None:
        """Each connection asks again as soon as it has its answer."""
        self.until = time.perf_counter() + seconds
        lines, self.idle = list(self.idle), deque()
        for line in lines:
            line.send(time.perf_counter())
        await asyncio.sleep(seconds + 0.5)

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Asks at times drawn beforehand."""
        rng = np.random.default_rng(0)
        due = time.perf_counter() + 0.05 + np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
        for moment in due.tolist():
            await _until(moment)
            if self.idle:
                self.idle.popleft().send(moment)
            else:
                self.waiting.append(moment)
        deadline = time.perf_counter() + 10
        while len(self.latencies) < len(due) and time.perf_counter() < deadline:
            await _until(time.perf_counter() + 0.01)
        self.lost += len(due) - len(self.latencies)


@dataclass
class Figures:
    """Of one server and one kind of request."""

    rate: float
    cpu: float
    latencies: "np.ndarray[tuple[int], np.dtype[np.float64]]"
    failed: int


def without_pause(server: Server, rows: int, seconds: float) -> Figures:
    async def run() -> Client:
        client = Client(server.port, request(rows))
        await client.connect(CONNECTIONS)
        await client.without_pause(seconds)
        return client

    uvloop.run(run())  # the first seconds find caches cold
    before = server.cpu()
    client = uvloop.run(run())
    number = len(client.latencies)
    return Figures(
        number / seconds, (server.cpu() - before) / number, np.array(client.latencies), client.failed
    )


def open_loop(server: Server, rate: float, seconds: float) -> Figures:
    async def run() -> Client:
        client = Client(server.port, request(1))
        await client.connect(CONNECTIONS)
        await client.open_loop(rate, seconds)
        return client

    before = server.cpu()
    client = uvloop.run(run())
    number = len(client.latencies)
    cpu = (server.cpu() - before) / number
    return Figures(rate, cpu, np.array(client.latencies), client.failed + client.lost)


def swaps(
    server: Server, folders: list[Path], rate: float, seconds: float
) -> tuple[Figures, list[dict[str, float]]]:
    """Open loop while policies are swapped all the time; what each swap said of itself."""
    import http.client

    async def run() -> tuple[Client, list[dict[str, float]]]:
        client = Client(server.port, request(1))
        await client.connect(CONNECTIONS)
        asking = asyncio.create_task(client.open_loop(rate, seconds))
        said: list[dict[str, float]] = []

        def swap(folder: Path) -> dict[str, float]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            body = json.dumps({"source": str(folder)})
            connection.request("PUT", "/v1/policy", body, {"authorization": "Bearer benchmark"})
            return json.loads(connection.getresponse().read())

        for folder in itertools.cycle(folders):
            if asking.done():
                break
            said.append(await asyncio.to_thread(swap, folder))
            await asyncio.sleep(0.1)
        return client, said

    client, said = uvloop.run(run())
    return Figures(rate, 0, np.array(client.latencies), client.failed + client.lost), said


# What is printed


def quantiles(latencies: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> str:
    return " ".join(f"{1e3 * x:8.2f}" for x in np.quantile(latencies, [0.5, 0.99, 0.999]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=5000.0, help="requests per second of the open loop")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ratchet-benchmark-"))
    token = home / "token"
    token.write_text("benchmark")
    folders = [home / "a", home / "b"]
    for seed, folder in enumerate(folders):
        policy(folder, seed)
    try:
        compare(arguments.only, folders, token, arguments.rate, arguments.seconds)
    finally:
        shutil.rmtree(home)


def compare(names: list[str], folders: list[Path], token: Path, rate: float, seconds: float) -> None:
    print(f"{CONNECTIONS} connections; latency in ms, open loop from the time a request was due\n")
    columns = (
        "server    CPU us/request  ratio  requests/s  failed   MiB",
        "at rate      p50      p99    p99.9",
    )
    print(" |  ".join(columns) + "  failed")
    ours = 0.0
    for name in sorted(names, key=lambda name: name != "ratchet"):
        with serving(name, folders[0], token) as server:
            full = without_pause(server, 1, seconds)
            taken = rate if full.rate > 1.3 * rate else full.rate / 2
            calm = open_loop(server, taken, seconds)
            ours = ours or full.cpu
            print(
                f"{name:8} {1e6 * full.cpu:15.1f} {full.cpu / ours:6.2f} {full.rate:11,.0f} {full.failed:7} "
                f"{server.memory():5.0f} | {taken:8,.0f} {quantiles(calm.latencies)} {calm.failed:7}",
                flush=True,
            )
            if name == "ratchet":
                own = details(server, folders, rate, seconds)
    if "ratchet" in names:
        print("\n" + "\n".join(own))


def details(server: Server, folders: list[Path], rate: float, seconds: float) -> list[str]:
    """Batches, and swaps under load, of our own server."""
    lines = ["observations/request  CPU us/observation  observations/s"]
    for rows in BATCHES:
        figures = without_pause(server, rows, seconds / 2)
        lines.append(f"{rows:20} {1e6 * figures.cpu / rows:19.2f} {figures.rate * rows:15,.0f}")
    before = server.memory()
    figures, said = swaps(server, folders, rate, seconds)
    swap = 1e6 * max(one["swapSeconds"] for one in said)
    load = 1e3 * float(np.median([one["loadSeconds"] for one in said]))
    lines += [
        f"\n{len(said)} swaps at {rate:,.0f} requests/s: {figures.failed} failed; the swap itself takes at "
        f"most {swap:.0f} us, loading, checking and warming up before it {load:.0f} ms (median)",
        f"latency meanwhile, p50 p99 p99.9: {quantiles(figures.latencies)} ms; memory {before:.0f} -> "
        f"{server.memory():.0f} MiB",
    ]
    return lines


if __name__ == "__main__":
    main()
