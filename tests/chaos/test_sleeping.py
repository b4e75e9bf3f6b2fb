"""Scale to zero on a real API server: whoever follows EndpointSlices finds somebody at all times, also where
the operator is killed after each of its writes, and whoever asks is answered.
"""

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import which
from typing import Any

import aiohttp
import pytest
from kubelet import Json
from lives import eventually
from operators import DOOR, Chart
from proxy import Plan
from ratchet_operator.build.waking import SERVICE_LABEL, door_name
from ratchet_operator.kinds import DEPLOYMENT, ENDPOINT_SLICE, POD, items, labels_of, name_of, sub
from stage import Stage, stage
from test_rollout_kills import AT_ONCE, NAME, REPLICAS, KilledAfterEachWrite, Rollout

NAPS = 2
KILLS_FOR_A_NAP = 6
"""The door, the ledger twice or more, the servers twice, the door's end; or the plan does not see them."""
NETWORK = "198.18"
"""Of pods: an EndpointSlice takes no loopback address. Meant for trials of networks (RFC 2544)."""


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    """Addresses of this machine alone; who may not give it some has to ask who may."""
    route = ["local", f"{NETWORK}.0.0/15", "dev", "lo"]
    add = ["ip", "route", "add", *route]
    is_ours = not _is_there() and which("ip") is not None and not subprocess.run(add, check=False).returncode
    if not _is_there():
        pytest.skip(f"pods need addresses: ip route add {' '.join(route)}")
    yield
    if is_ours:
        subprocess.run(["ip", "route", "del", *route], check=True)


def _is_there() -> bool:
    for address in (f"{NETWORK}.0.1", DOOR):
        with socket.socket() as one:
            try:
                one.bind((address, 0))
            except OSError:
                return False
    return True


class Sleeper(Rollout):
    """A PolicyDeployment that sleeps, and those who follow its Service."""

    def __init__(self, on: Stage, namespace: str) -> None:
        super().__init__(on, namespace, {**AT_ONCE, "scaleToZeroAfter": "10s"})
        self.slices: dict[str, Json] = {}
        self.blind: list[str] = []

    def hosts(self) -> list[tuple[str, int]]:
        """Where whoever follows the slices sends requests."""
        return [
            (host, port["port"])
            for one in self.slices.values()
            for port in items(one, "ports")
            for endpoint in items(one, "endpoints")
            if sub(endpoint, "conditions").get("ready", True)
            for host in endpoint["addresses"]
        ]

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Take in each change, as it is told."""
        found = await self.on.api.request("GET", ENDPOINT_SLICE.path(self.namespace)) or {}
        for one in found["items"]:
            self._take("ADDED", one)
        task = asyncio.create_task(self._follow(found["metadata"]["resourceVersion"]))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, version: str) -> None:
        params = {"watch": "true", "resourceVersion": version}
        path = ENDPOINT_SLICE.path(self.namespace)
        async with self.on.api.session.get(path, params=params) as answer:
            async for line in answer.content:
                event = json.loads(line)
                self._take(event["type"], event["object"])
                if not self.hosts():
                    self.blind.append(f"after {event['type']} {name_of(event['object'])}")

    def _take(self, kind: str, one: Json) -> None:
        if labels_of(one).get(SERVICE_LABEL) == NAME:
            self.slices.pop(name_of(one), None)
            if kind != "DELETED":
                self.slices[name_of(one)] = one

    async def sleeps(self) -> None:
        async def over() -> bool:
            told = {one["type"]: one["reason"] for one in (await self.status()).get("conditions", [])}
            is_asleep = told.get("Progressing") == "ScaledToZero" and not await self._pods()
            return is_asleep and len(self.hosts()) == 1

        await eventually("it sleeps, and the door alone is left", over)
        (deployment,) = await self.on.api.list(DEPLOYMENT.path(self.namespace))
        assert deployment["spec"]["replicas"] == 0
        assert door_name(NAME) in self.slices

    async def is_awake(self) -> None:
        async def over() -> bool:
            return len(self.hosts()) == REPLICAS and door_name(NAME) not in self.slices

        await eventually("its servers alone are there", over)

    async def _pods(self) -> list[Json]:
        return await self.on.api.list(POD.path(self.namespace))

    async def ask(self) -> str:
        """Ask until there is an answer: an operator that is killed takes the connection with it."""

        async def once() -> str | None:
            host, port = self.hosts()[0]
            try:
                async with self.on.api.session.post(f"http://{host}:{port}/v1/act", json={}) as answer:
                    return (await answer.json())["pod"] if answer.status == 200 else None
            except aiohttp.ClientError:
                return None

        return await eventually("there is an answer", once)


@pytest.mark.parametrize("is_killed", [False, True])
def test_somebody_is_always_there(chart: Chart, tmp_path: Path, is_killed: bool):
    plan: Any = KilledAfterEachWrite() if is_killed else Plan()

    async def naps() -> tuple[list[str], int]:
        async with (
            stage(chart, tmp_path, network=NETWORK) as on,
            on.proxy(plan, one_write_at_a_time=is_killed) as proxy,
            on.operator(proxy) as plan.operator,
        ):
            sleeper = Sleeper(on, f"sleeping-{is_killed}".lower())
            await sleeper.begin()
            await sleeper.serves(1)
            plan.kills = 0
            async with sleeper.followed():
                for _ in range(NAPS):
                    await sleeper.sleeps()
                    pod = await sleeper.ask()
                    assert pod.startswith(NAME)
                    await sleeper.is_awake()
            await sleeper.end()
            return sleeper.blind, plan.kills

    blind, kills = asyncio.run(naps())

    assert blind == []
    assert not is_killed or kills >= NAPS * KILLS_FOR_A_NAP
