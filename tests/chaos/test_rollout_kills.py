"""A policy is deployed, replaced, and brought back, while the operator is killed after each of its writes."""

import asyncio
from collections import Counter
from pathlib import Path

from kubelet import Json
from lives import eventually
from operators import Chart, Operator
from proxy import Plan, Proxy, Request
from ratchet_operator.kinds import (
    API_VERSION,
    DEPLOYMENT,
    EVENT,
    POLICY_DEPLOYMENT,
    REVISION_LABEL,
    SERVICE,
    SERVING_LABEL,
    sub,
)
from stage import Stage, stage

NAME = "walker"
REPLICAS = 2
KILLS_FOR_A_ROLLOUT = 30
"""Three policies take so many writes at least; fewer kills would mean that the plan does not see them."""


def source(number: int) -> Json:
    s3 = {"bucket": "bucket", "prefix": "policies"}
    return {"type": "Checkpoint", "checkpoint": {"s3": s3, "digest": f"sha256:{number:064x}"}}


def manifest(number: int) -> Json:
    # Nobody plays, and so no guard would ever let a stage pass.
    strategy = {"type": "AllAtOnce", "bake": "1s", "cooldown": "1s", "progressDeadline": "20s"}
    spec = {"source": source(number), "replicas": REPLICAS, "strategy": strategy}
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


class Rollout:
    """A PolicyDeployment in a namespace of its own."""

    def __init__(self, on: Stage, namespace: str) -> None:
        self.on, self.namespace = on, namespace
        self.path = POLICY_DEPLOYMENT.path(namespace, NAME)

    async def begin(self) -> None:
        await self.on.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        collection = POLICY_DEPLOYMENT.path(self.namespace)
        made = await self.on.api.request("POST", collection, manifest(1))
        self.on.kubelet.servers.owner = sub(made, "metadata").get("uid", "")

    async def serves(self, number: int) -> None:
        """Wait until this policy, and nothing else, has servers and clients."""

        async def over() -> bool:
            status = sub(await self.on.api.request("GET", self.path), "status")
            if sub(status, "stable").get("digest") != f"sha256:{number:064x}" or status.get("trial"):
                return False
            revision = status["stable"]["revision"]
            left = await self.on.api.list(DEPLOYMENT.path(self.namespace), SERVING_LABEL)
            services = await self.on.api.list(SERVICE.path(self.namespace), SERVING_LABEL)
            selected = {sub(one, "spec", "selector").get(REVISION_LABEL) for one in services}
            alone = [sub(one, "metadata")["name"] for one in left] == [f"{NAME}-{revision}"]
            return alone and selected == {revision} and len(services) == 2

        await eventually(f"policy {number} alone serves", over, deadline=240)

    async def told(self) -> Counter[str]:
        listed = await self.on.api.list(EVENT.path(self.namespace))
        return Counter(
            one["reason"] for one in listed if one["involvedObject"]["kind"] == POLICY_DEPLOYMENT.kind
        )

    async def live(self) -> None:
        await self.begin()
        await self.serves(1)
        await self.on.api.merge(self.path, {"spec": {"source": source(2)}})
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
            rollout = Rollout(on, "rollout-killed")
            await rollout.live()
            return await rollout.told(), creations(proxy, rollout.namespace), on.kubelet.servers.refused

    told, made, refused = asyncio.run(killed())

    assert plan.kills >= KILLS_FOR_A_ROLLOUT
    # The ConfigMap, the Secret and the Service once; Deployment, Service and budget for each of three arms.
    assert made == 3 + 3 * 3
    assert told["Promoted"] <= 3
    assert not told.keys() & {"RollBackFailed", "RollBackTimedOut", "RollBackSuperseded"}
    assert refused == 0
