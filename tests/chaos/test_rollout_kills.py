"""A policy is deployed, replaced, and brought back, while the operator is killed after each of its writes:
after each on one way, and on many after the nth alone, for every n.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from kubelet import Json
from lives import eventually
from operators import Chart, Operator
from proxy import Plan, Proxy, Request
from ratchet_operator.kinds import (
    API_VERSION,
    DEPLOYMENT,
    EVENT,
    POD,
    POLICY_DEPLOYMENT,
    REVISION_LABEL,
    SERVICE,
    SERVING_LABEL,
    sub,
)
from stage import Stage, stage

NAME = "walker"
REPLICAS = 2
PATIENCE = 420.0
"""Seconds that a rollout may take: longer than `progressDeadline`, which nothing here may reach."""
KILLS_FOR_A_ROLLOUT = 30
"""Three policies take so many writes at least; fewer kills would mean that the plan does not see them."""
FEWEST_WRITES = 15
"""Of one rollout, its statuses and Events among them."""
EVERY = int(os.environ.get("RATCHET_KILL_AFTER_EVERY", "7"))
"""The operator is killed after the first write of a rollout, and after each so manieth from there."""
# Nobody plays, and so no guard would ever let a stage pass.
AT_ONCE: Json = {"strategy": {"type": "AllAtOnce"}}
BY_STAGES: Json = {
    "strategy": {"type": "Canary", "canary": {"steps": [{"weight": 50, "minDuration": "0s"}]}},
    "guards": {
        name: {"enabled": False}
        for name in ("errorRate", "fallbackRate", "latency", "maskViolations", "nan", "restarts")
    },
}
WATCHED: Json = {"strategy": BY_STAGES["strategy"]}


def source(number: int) -> Json:
    s3 = {"bucket": "bucket", "prefix": "policies"}
    return {"type": "Checkpoint", "checkpoint": {"s3": s3, "digest": f"sha256:{number:064x}"}}


def manifest(number: int, spec: Json) -> Json:
    strategy = {**spec["strategy"], "bake": "1s", "cooldown": "1s", "progressDeadline": "5m"}
    spec = {**spec, "source": source(number), "replicas": REPLICAS, "strategy": strategy}
    return {
        "apiVersion": API_VERSION,
        "kind": POLICY_DEPLOYMENT.kind,
        "metadata": {"name": NAME},
        "spec": spec,
    }


class KilledAfterEachWrite(Plan):
    """Kills as soon as the API server has executed a write. Events and the Lease are part of no state, and
    nothing follows from a status: it tells how long something has lasted, and differs at each start.
    """

    operator: Operator
    kills: int = 0

    def executed(self, request: Request) -> None:
        if request.resource.partition("/")[0] not in ("leases", "events", POLICY_DEPLOYMENT.plural):
            self.kills += 1
            self.operator.kill()


class KilledAfterTheNthWrite(Plan):
    """Kills once, as soon as the API server has executed a write, whatever was written but the Lease."""

    operator: Operator
    nth: int = 0
    seen: int = 0

    def begin(self, nth: int) -> None:
        self.nth, self.seen = nth, 0

    @property
    def has_killed(self) -> bool:
        return self.seen >= self.nth

    def executed(self, request: Request) -> None:
        if request.resource != "leases":
            self.seen += 1
            if self.seen == self.nth:
                self.operator.kill()


class Rollout:
    """A PolicyDeployment in a namespace of its own."""

    def __init__(self, on: Stage, namespace: str, spec: Json) -> None:
        self.on, self.namespace, self.spec = on, namespace, spec
        self.path = POLICY_DEPLOYMENT.path(namespace, NAME)

    async def begin(self) -> None:
        await self.on.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        collection = POLICY_DEPLOYMENT.path(self.namespace)
        made = await self.on.api.request("POST", collection, manifest(1, self.spec))
        self.on.kubelet.servers.owner = sub(made, "metadata").get("uid", "")

    async def end(self) -> None:
        """Take it away: an operator of another test would find it."""
        await self.on.api.request("DELETE", self.path)

        async def gone() -> bool:
            left = [await self.on.api.list(kind.path(self.namespace)) for kind in (DEPLOYMENT, POD)]
            return not any(left)

        await eventually("nothing is left", gone)

    async def offer(self, number: int) -> None:
        await self.on.api.merge(self.path, {"spec": {"source": source(number)}})

    async def status(self) -> Json:
        return sub(await self.on.api.request("GET", self.path), "status")

    async def serves(self, number: int) -> None:
        """Wait until this policy, and nothing else, has servers and clients."""

        async def over() -> bool:
            status = await self.status()
            if sub(status, "stable").get("digest") != f"sha256:{number:064x}" or status.get("trial"):
                return False
            revision = status["stable"]["revision"]
            left = await self.on.api.list(DEPLOYMENT.path(self.namespace), SERVING_LABEL)
            services = await self.on.api.list(SERVICE.path(self.namespace), SERVING_LABEL)
            selected = {sub(one, "spec", "selector").get(REVISION_LABEL) for one in services}
            alone = [sub(one, "metadata")["name"] for one in left] == [f"{NAME}-{revision}"]
            return alone and selected == {revision} and len(services) == 2

        await eventually(f"policy {number} alone serves", over, deadline=PATIENCE)

    async def told(self) -> Counter[str]:
        listed = await self.on.api.list(EVENT.path(self.namespace))
        return Counter(
            one["reason"] for one in listed if one["involvedObject"]["kind"] == POLICY_DEPLOYMENT.kind
        )

    async def ended(self, number: int) -> str:
        """How the only trial of a policy ended."""

        async def past() -> list[Json]:
            digest = f"sha256:{number:064x}"
            return [one for one in (await self.status()).get("history", []) if one["digest"] == digest]

        (found,) = await eventually(f"the trial of policy {number} ends", past, deadline=PATIENCE)
        return found["outcome"]

    async def crashes(self, number: int) -> None:
        """A server of this policy starts again, once it has a share of the traffic."""

        async def staged() -> Json | None:
            status = await self.status()
            is_staged = sub(status, "trial").get("phase") == "Stage" and sub(status, "canary").get("weight")
            return sub(status, "canary") if is_staged else None

        arm = await eventually(f"policy {number} has traffic", staged, deadline=PATIENCE)
        pods = await self.on.api.list(POD.path(self.namespace), f"{REVISION_LABEL}={arm['revision']}")
        statuses = [{**one, "restartCount": 1} for one in pods[0]["status"]["containerStatuses"]]
        path = POD.path(self.namespace, pods[0]["metadata"]["name"])
        await self.on.api.merge(f"{path}/status", {"status": {"containerStatuses": statuses}})

    async def live(self) -> None:
        await self.begin()
        await self.serves(1)
        await self.offer(2)
        await self.serves(2)
        undo = {"metadata": {"annotations": {"ratchet.dev/rollout": "undo/1"}}}
        await self.on.api.merge(self.path, undo)
        await self.serves(1)


def creations(proxy: Proxy, namespace: str) -> int:
    """How many objects the operator made; Events apart, which may be lost and never come twice."""
    made = proxy.creations(namespace)
    return sum(count for (resource, _), count in made.items() if resource != EVENT.plural)


def test_a_rollout_goes_on_where_an_operator_died_after_the_nth_write_for_every_n(
    chart: Chart, tmp_path: Path
):
    plan = KilledAfterEachWrite()

    async def killed() -> tuple[Counter[str], int, int]:
        async with (
            stage(chart, tmp_path) as on,
            on.proxy(plan, one_write_at_a_time=True) as proxy,
            on.operator(proxy) as plan.operator,
        ):
            rollout = Rollout(on, "rollout-killed", AT_ONCE)
            await rollout.live()
            made = creations(proxy, rollout.namespace)
            told = await rollout.told()
            await rollout.end()
            return told, made, on.kubelet.servers.refused

    told, made, refused = asyncio.run(killed())

    assert plan.kills >= KILLS_FOR_A_ROLLOUT
    # The ConfigMap, the Secret and the Service once; Deployment, Service and budget for each of three arms.
    assert made == 3 + 3 * 3
    assert told["Promoted"] <= 3
    assert not told.keys() & {"RollBackFailed", "RollBackTimedOut", "RollBackSuperseded"}
    assert refused == 0


async def promoted(rollout: Rollout, number: int) -> None:
    """A policy comes, and takes over from the one before."""
    await rollout.offer(number)
    await rollout.serves(number)
    assert await rollout.ended(number) == "Promoted"


async def rolled_back(rollout: Rollout, number: int) -> None:
    """A policy comes, crashes, and goes."""
    await rollout.offer(number)
    await rollout.crashes(number)
    assert await rollout.ended(number) == "Failed"
    await rollout.serves(1)


@pytest.mark.parametrize(("does", "spec"), [(promoted, BY_STAGES), (rolled_back, WATCHED)])
def test_a_rollout_ends_as_it_would_have_where_an_operator_died_after_its_nth_write(
    chart: Chart, tmp_path: Path, does: Callable[[Rollout, int], Awaitable[None]], spec: dict[str, Any]
):
    plan = KilledAfterTheNthWrite()

    async def killed() -> tuple[int, int, int, int]:
        async with (
            stage(chart, tmp_path) as on,
            on.proxy(plan, one_write_at_a_time=True) as proxy,
            on.operator(proxy) as plan.operator,
        ):
            rollout = Rollout(on, f"rollout-{does.__name__.replace('_', '-')}", spec)
            await rollout.begin()
            await rollout.serves(1)
            number, plan.nth = 1, 1 - EVERY
            while number == 1 or plan.has_killed:
                number += 1
                plan.begin(plan.nth + EVERY)
                await does(rollout, number)
            made = creations(proxy, rollout.namespace)
            await rollout.end()
            return number, plan.nth, made, on.kubelet.servers.refused

    arms, writes, made, refused = asyncio.run(killed())

    assert writes >= FEWEST_WRITES
    assert made == 3 + 3 * arms
    assert refused == 0
