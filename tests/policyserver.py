"""A real policy server on a loopback port, in a thread of its own, and policies to put into it."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import uvloop
from ratchet_inference.decisions.rewards import Rewards
from ratchet_inference.seams import Log, Policy
from ratchet_inference.server import PolicyServer
from ratchet_inference.settings import Settings

from ratchet.api.v1alpha1.serverstats import Route
from ratchet.policies import PolicySpec, SpaceSpec, parameter_shapes
from ratchet.policies.serving import Decisions, ServedPolicy

T = TypeVar("T")
SPEC = PolicySpec(
    observation=SpaceSpec(kind="Box", shape=(4,), low=-4.0, high=4.0),
    action=SpaceSpec(kind="Discrete", n=3, dtype="int64"),
)
# Nothing is late but in the tests that are about that.
CHOICES: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "drain_delay_seconds": 0.0,
    "canary_ms": 10_000.0,
    "fallback_ms": 10_000.0,
}
RECURRENT = SPEC.model_copy(update={"recurrent_size": 8})


def policy(digest: str = "a", spec: PolicySpec = SPEC, seed: int = 0) -> ServedPolicy:
    """A policy with weights drawn by seed, whose digest is a letter repeated."""
    rng = np.random.default_rng(seed)
    parameters = {name: rng.standard_normal(shape) * 0.5 for name, shape in parameter_shapes(spec).items()}
    return ServedPolicy.of(digest * 64, spec, parameters)


class Broken:
    """A policy that spoils what another decides, or never decides."""

    def __init__(self, inner: ServedPolicy, spoil: Callable[[Decisions], Decisions]) -> None:
        self.inner = inner
        self.digest, self.spec = inner.digest, inner.spec
        self.recurrent_size, self.lineage = inner.recurrent_size, inner.lineage
        self.evaluated = inner.evaluated
        self.spoil = spoil
        self.batches: list[int] = []

    def decide(self, observations: Any, **options: Any) -> Decisions:
        self.batches.append(len(observations))
        return self.spoil(self.inner.decide(observations, **options))


@dataclass
class Pair:
    """The policies in memory."""

    current: Policy | None = None
    previous: Policy | None = None


@dataclass
class Kept:
    """A decision log that keeps everything."""

    rows: list[Any] = field(default_factory=list[Any])

    def record(self, decision: Any) -> None:
        self.rows.append(decision)

    @property
    def counts(self) -> "Kept":
        return Kept()


@dataclass
class Running:
    """A server and its loop."""

    server: PolicyServer
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        return self.server.port

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, function: Callable[[], T]) -> T:
        async def inside() -> T:
            return function()

        return self.run(inside())

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON (or text) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
        try:
            connection.request(method, path, content, dict(headers or {}))
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if "json" in answer.headers[
                "content-type"
            ] else text.decode()
        finally:
            connection.close()

    def act(self, **body: Any) -> tuple[int, Any]:
        return self.request("POST", "/v1/act", body)

    def stats(self) -> Any:
        return self.request("GET", "/v1/stats")[1]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def post(body: bytes | str, path: str = "/v1/act") -> bytes:
    """A request as bytes."""
    content = body.encode() if isinstance(body, str) else body
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (
        path.encode(),
        len(content),
        content,
    )


def answers(connection: socket.socket, count: int) -> list[tuple[int, Any]]:
    """Reads that many answers from a connection."""
    found: list[tuple[int, Any]] = []
    stream = connection.makefile("rb")
    for _ in range(count):
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline().strip()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        found.append((status, json.loads(stream.read(length))))
    return found


@contextmanager
def serving(
    residents: Any, decisions: Log | None = None, rewards: Rewards | None = None, **settings: Any
) -> Generator[Running]:
    """A server that runs until the end of the block."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    chosen = Settings(**{**CHOICES, **settings})

    async def start() -> PolicyServer:
        server = PolicyServer(chosen, residents, rewards, decisions)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    running = Running(server, loop)
    try:
        yield running
    finally:
        if not server.listener.draining:
            running.run(server.drain())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


def send_to(running: Running, port: int, weight: float, generation: int = 1, **more: Any) -> None:
    """Gives a server a route to the canary on that port."""
    route = Route(generation=generation, canary=f"http://127.0.0.1:{port}", weight=weight, **more)
    running.call(lambda: running.server.dispatch.set_route(route))
    running.run(running.server.dispatch.reached())


def tallies(running: Running, arm: str) -> list[Any]:
    """What a server says of an arm, for each policy there."""
    return [one for one in running.stats()["arms"] if one["arm"] == arm]


@contextmanager
def two_servers(**settings: Any) -> Generator[tuple[Running, Running]]:
    """A stable server with policy a, and a canary with policy c."""
    with (
        serving(Pair(policy("c", seed=1))) as canary,
        serving(Pair(policy("a")), **settings) as stable,
    ):
        yield stable, canary


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds, 20 seconds at most."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)
