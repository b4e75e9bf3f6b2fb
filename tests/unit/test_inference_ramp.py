"""A whole rollout between real processes, of which one dies: no request fails, no episode changes its policy.

200 episodes at once, each step over a new connection to any of the stable servers, as through a Service.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from test_inference_process import Program, program, stored

from ratchet.client import Action, AsyncClient, Retries

AT_ONCE = 200
PATIENT = 30.0  # seconds that nothing here takes unless it is broken
OBSERVATION = [0.1, -0.2, 0.3, 0.4]


@dataclass
class Service:
    """Gives each new connection to one of the servers that are up, as a Service of Kubernetes does."""

    servers: list[int]
    taken: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        self.idle.clear()
        for port in random.sample(self.servers, len(self.servers)):
            with suppress(OSError):
                back = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pass_on(reader, back[1]), _pass_on(back[0], writer))
                break
        writer.close()
        self.taken -= 1
        if not self.taken:
            self.idle.set()


async def _pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            to.write(data)
    to.close()


@dataclass
class Audience:
    """Clients that play episodes until they are told to stop, and remember who answered."""

    url: str
    actions: list[Action] = field(default_factory=list[Action])
    episodes: list[list[Action]] = field(default_factory=list[list[Action]])
    stopped: bool = False
    goal: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, seed: int) -> None:
        dice = random.Random(seed)
        retries = Retries(attempts=10, burst=100)
        client = AsyncClient(self.url, strict=True, timeout=PATIENT, retries=retries)
        while not self.stopped:
            name = client.names.next()
            steps: list[Action] = []
            self.episodes.append(steps)
            for _ in range(dice.randint(2, 20)):
                action = await client.act(OBSERVATION, episode=name)
                await client.close()  # the next step is a new connection's
                steps.append(action)
                self.actions.append(action)
                if len(self.actions) == self.goal:
                    self.reached.set()

    async def more(self, actions: int) -> None:
        """Returns when that many more were taken."""
        self.goal = len(self.actions) + actions
        self.reached.clear()
        await self.reached.wait()

    @property
    def changed(self) -> list[list[str]]:
        """Of episodes that more than one policy answered, the policies in order; fallbacks are no answers."""
        found: list[list[str]] = []
        for steps in self.episodes:
            digests = [action.digest for action in steps if action.fallback is None]
            if len(set(digests)) > 1:
                found.append(digests)
        return found


@asynccontextmanager
async def playing(service: Service) -> AsyncGenerator[Audience]:
    server = await asyncio.start_server(service.take, "127.0.0.1", 0, backlog=2 * AT_ONCE)
    audience = Audience(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with asyncio.timeout(4 * PATIENT), asyncio.TaskGroup() as tasks:
        for seed in range(AT_ONCE):
            tasks.create_task(audience.play(seed))
        yield audience
        audience.stopped = True
    server.close()
    await service.idle.wait()


@dataclass
class Fleet:
    """Server processes, started with the route that is in force, as pods are."""

    folder: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        (self.folder / "token").write_text("boss")
        self.order({"generation": 0}, [])
        self.digests = {name: stored(self.folder / name, seed) for seed, name in enumerate(("old", "new"))}

    def start(self, *policies: str) -> list[Program]:
        """Servers that are ready."""
        servers = [
            self.stack.enter_context(
                program(
                    "--policy", str(self.folder / policy),
                    "--admin-token-file", str(self.folder / "token"),
                    "--route-file", str(self.folder / "route"),
                    "--canary-ms", "5000",
                )
            )
            for policy in policies
        ]  # fmt: skip
        for server in servers:
            server.until("swapped")
        return servers

    def order(self, route: dict[str, Any], servers: list[Program]) -> None:
        """Gives a route to servers, and to those that start from now on."""
        text = json.dumps(route)
        (self.folder / "route").write_text(text)
        for server in servers:
            status, answer = server.request("PUT", "/v1/route", text, "boss")
            assert status == 200, answer


def url(server: Program) -> str:
    return f"http://127.0.0.1:{server.port()}"


async def ramp(fleet: Fleet, stable: list[Program], canary: Program, service: Service, of: Audience) -> None:
    """Raises the canary's weight to 1; meanwhile a stable server is killed, and another takes its place."""
    for generation, weight in enumerate((0.05, 0.25, 0.5, 1.0), 1):
        route = {"generation": generation, "canary": url(canary), "weight": weight, "salt": "s",
                 "digest": fleet.digests["new"]}  # fmt: skip
        await asyncio.to_thread(fleet.order, route, stable)
        await of.more(400)
        if weight == 0.25:
            stable.pop().process.kill()
            await of.more(200)
            stable += await asyncio.to_thread(fleet.start, "old")
            service.servers = [server.port() for server in stable]
            await of.more(200)


def test_a_ramp_and_its_end_fail_no_request_and_move_no_episode(tmp_path: Path):
    async def roll(fleet: Fleet) -> tuple[Audience, int, int]:
        canary, *stable = fleet.start("new", "old", "old")
        service = Service([server.port() for server in stable])
        async with playing(service) as audience:
            await ramp(fleet, stable, canary, service, audience)
            route = {"generation": 5, "canary": url(canary), "weight": 0.0, "salt": "s",
                     "digest": fleet.digests["new"]}  # fmt: skip
            await asyncio.to_thread(fleet.order, route, stable)
            await audience.more(600)
            before, running = len(audience.changed), len(audience.episodes)
            await asyncio.to_thread(fleet.order, {"generation": 6}, stable)
            await audience.more(400)
        return audience, before, running

    with ExitStack() as stack:
        fleet = Fleet(tmp_path, stack)
        audience, before, running = asyncio.run(roll(fleet))
    old, new = fleet.digests["old"], fleet.digests["new"]
    by_new = {action.fallback for action in audience.actions if action.digest == new}
    assert before == 0
    assert by_new == {None}
    # Those that were taken away from the canary in the end moved once, and to the stable policy.
    assert all(digests == sorted(digests, key=[new, old].index) for digests in audience.changed)
    assert all(steps[0].digest == old for steps in audience.episodes[running:])


def test_a_promotion_moves_no_episode(tmp_path: Path):
    async def roll(fleet: Fleet) -> tuple[Audience, int]:
        canary, *stable = fleet.start("new", "old", "old")
        service = Service([server.port() for server in stable])
        async with playing(service) as audience:
            await ramp(fleet, stable, canary, service, audience)
            # The way back first: it is there before the first client arrives.
            back = {"generation": 5, "canary": url(stable[0]), "digest": fleet.digests["old"]}
            await asyncio.to_thread(fleet.order, back, [canary])
            service.servers = [canary.port()]
            await audience.more(400)
            promoted = len(audience.episodes)
            await audience.more(600)
        return audience, promoted

    with ExitStack() as stack:
        fleet = Fleet(tmp_path, stack)
        audience, promoted = asyncio.run(roll(fleet))
    assert audience.changed == []
    assert {steps[0].digest for steps in audience.episodes[promoted:]} == {fleet.digests["new"]}
