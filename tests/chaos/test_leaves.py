"""Each leaf of each spec changed there and back: the first state returns, or the change is refused."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path as File
from typing import Any

import pytest
from kubelet import RefusedError
from leaves import Path, changed, leaves
from lives import JOB, SPEC, Json, Life, begin, difference, eventually
from operators import Chart
from proxy import Proxy
from ratchet_operator.kinds import API_VERSION, POLICY_DEPLOYMENT, ROLLOUT_POOL, TRAINING_JOB, Kind
from served import children
from stage import Stage, stage

from ratchet.api.crd import root_schema
from ratchet.api.v1alpha1.kinds import KINDS

NAMESPACES = 8
POLICIES = 10
"""Each in a namespace of its own; of 16 new objects, a crowd, the operator writes each status more rarely."""
POD: Json = {
    "image": "registry.example/one:1",
    "imagePullSecrets": [{"name": "pull"}],
    "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
    "placement": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [
            {"key": "spot", "operator": "Equal", "value": "a", "effect": "NoExecute", "tolerationSeconds": 5}
        ],
        "priorityClassName": "high",
        "runtimeClassName": "fast",
    },
    "volumes": [
        {"name": "a", "mountPath": "/a", "configMap": "one"},
        {"name": "b", "mountPath": "/b", "secret": "one"},
        {"name": "c", "mountPath": "/c", "emptyDir": "1Gi"},
        {"name": "d", "mountPath": "/d", "persistentVolumeClaim": "one"},
    ],
}
FULL: Json = {
    **SPEC,
    "trainer": {**POD, "gpu": {"count": 1}},
    "rollouts": {**POD, "replicas": 2, "minReplicas": 1, "maxReplicas": 4},
    "experience": {"managed": {"maxMemory": "64Mi", "resources": {"requests": {"cpu": "1"}}}},
    "checkpoint": {"s3": {"bucket": "bucket", "endpoint": "http://s3.example", "secretRef": {"name": "s3"}}},
    "stop": {"maxSteps": 100_000, "targetReturn": 400, "maxDuration": "1h"},
    "failurePolicy": {
        "rules": [
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}},
            {"action": "Count", "onReasons": ["Evicted"]},
        ]
    },
}
POOL: Json = {**POD, "trainingJobRef": {"name": JOB}, "replicas": 2, "minReplicas": 1, "maxReplicas": 4}
S3: Json = {
    "bucket": "bucket",
    "prefix": "policies",
    "endpoint": "http://s3.example",
    "secretRef": {"name": "s3"},
}
SERVED: Json = {
    "source": {"type": "Checkpoint", "checkpoint": {"s3": S3, "digest": f"sha256:{1:064x}"}},
    "replicas": 2,
    "autoscaling": {"maxReplicas": 4},
    "scaleToZeroAfter": "1h",
    "server": POD,
    "strategy": {"canary": {"steps": [{"weight": 5}, {"weight": 25}]}},
    "traffic": {"gateway": {"httpRouteRef": {"name": "web"}}},
    "guards": {
        "episodeReturn": {"range": {"low": 0, "high": 500}},
        "prometheus": [
            {"name": "one", "url": "http://127.0.0.1:9", "query": "up", "min": 0, "max": 1},
            {"name": "two", "url": "http://127.0.0.1:9", "query": "up", "max": 1},
        ],
    },
    "webhook": {"secretRef": {"name": "chat"}},
}
FOLLOWING: Json = {
    "source": {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": JOB}}},
    "replicas": 2,
}
"""What SERVED can't have beside its own source and its autoscaler, which alone decides upon replicas."""
FIXED: dict[Kind, tuple[Path, ...]] = {
    TRAINING_JOB: (
        ("environment",), ("algorithm",), ("experience",),
        ("checkpoint", "s3", "bucket"), ("checkpoint", "s3", "prefix"),
    ),
    ROLLOUT_POOL: (("trainingJobRef",),),
    POLICY_DEPLOYMENT: (),
}  # fmt: skip
"""What can't be changed."""
ALWAYS_REFUSED = {"namespace", "hostNetwork", "privileged", "hostPath"}
RULED: dict[Path, str] = {("source", "type"): "source.type does not fit its member"}
"""A leaf that no other value fits, by what the API server says."""
NEEDS: dict[Path, tuple[Path, str]] = {
    ("rollouts", "maxPolicyLag"): (("rollouts", "mode"), "BoundedAsync"),
    ("source", "trainingJob", "step"): (("source", "trainingJob", "checkpoint"), "Step"),
}
"""A leaf that is valid only with another one."""


class Owner:
    """One object whose spec is changed, and what the operator made of it."""

    def __init__(self, life: Life, kind: Kind, name: str) -> None:
        self.life, self.kind, self.name = life, kind, name
        self.path = life.path(kind, name)

    async def live(self) -> Json:
        return await self.life.api.request("GET", self.path) or {}

    async def write(self, spec: Json) -> None:
        change = [{"op": "replace", "path": "/spec", "value": spec}]
        await self.life.api.request("PATCH", self.path, change, "application/json-patch+json")

    async def observed(self) -> bool:
        live = await self.live()
        return live.get("status", {}).get("observedGeneration") == live["metadata"]["generation"]

    async def wishes(self) -> dict[str, Json]:
        """The specs of everything around; no pod runs here, so no status means anything."""
        state = await self.life.state()
        return {
            name: {field: value for field, value in obj.items() if field != "status"}
            for name, obj in state.items()
            if not name.startswith("Pod/")
        }

    async def there_and_back(self, path: Path, value: object, spec: Json, first: dict[str, Json]) -> None:
        """Raises:
        AssertionError: the change was refused and should not be, or the other way round, or left something.

        """
        what = f"{self.kind.kind} {'.'.join(map(str, path))}"
        there = changed(spec, path, value)
        if path in NEEDS:
            there = changed(there, *NEEDS[path])
        fixed = any(path[: len(prefix)] == prefix for prefix in FIXED[self.kind])
        said = "can't be changed" if fixed else RULED.get(path)
        if said is not None or path[-1] in ALWAYS_REFUSED:
            with pytest.raises(RefusedError, match=said) as refusal:
                await self.write(there)
            assert refusal.value.status == 422, what
            return
        await self.write(there)
        await eventually(f"{what} = {value!r} is observed", self.observed)
        await self.write(spec)
        await eventually(f"{what} is observed again", self.observed)
        now: dict[str, Json] = {}

        async def returned() -> bool:
            nonlocal now
            now = await self.wishes()
            return now == first

        try:
            await eventually(f"the first state after {what} = {value!r}", returned)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{difference(first, now)}") from None


class Served(Owner):
    """A PolicyDeployment. Without pods its first policy stays on trial, and the next one takes its place."""

    async def wishes(self) -> dict[str, Json]:
        found = await children(self.life.api, self.life.namespace)
        is_scaled = "autoscaling" in (await self.live())["spec"]
        for name, obj in found.items():
            if is_scaled and name.startswith("Deployment/"):
                del obj["spec"]["replicas"]
        return found

    async def end(self) -> None:
        """Take it away: an operator of another test would find it."""
        await self.life.api.request("DELETE", self.path)

        async def gone() -> bool:
            return not await children(self.life.api, self.life.namespace)

        await eventually("nothing is left", gone)


def test_each_leaf_of_each_spec_changed_there_and_back_leaves_nothing(chart: Chart, tmp_path: File):
    def parts(on: Stage, proxy: Proxy) -> list[Coroutine[Any, Any, int]]:
        lives = [on.life(f"leaves-{number}", proxy) for number in range(NAMESPACES)]
        return [some_leaves(life, number) for number, life in enumerate(lives)]

    assert asyncio.run(all_of(chart, tmp_path, parts)) > 100, "the schema has more leaves than that"


def test_each_leaf_of_a_policy_deployment_changed_there_and_back_leaves_nothing(chart: Chart, tmp_path: File):
    def parts(on: Stage, proxy: Proxy) -> list[Coroutine[Any, Any, int]]:
        lives = [on.life(f"leaves-served-{number}", proxy) for number in range(POLICIES)]
        following = leaves_of_the_source(on.life("leaves-following", proxy))
        return [following, *(some_leaves_served(life, number) for number, life in enumerate(lives))]

    assert asyncio.run(all_of(chart, tmp_path, parts)) > 130, "the schema has more leaves than that"


async def all_of(
    chart: Chart, logs: File, parts: Callable[[Stage, Proxy], list[Coroutine[Any, Any, int]]]
) -> int:
    """How many leaves all parts have tried, one beside the other."""
    async with (
        stage(chart, logs, pods_run=False) as on,
        on.proxy() as proxy,
        on.operator(proxy),
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(part) for part in parts(on, proxy)]
        return sum([await task for task in tasks])


async def settled(life: Life) -> None:
    """A namespace with the credentials of a bucket."""
    await life.settle_in()
    secret = {"metadata": {"name": "s3"}, "stringData": {"AWS_ACCESS_KEY_ID": "a"}}
    await life.api.request("POST", f"/api/v1/namespaces/{life.namespace}/secrets", secret)


async def some_leaves(life: Life, part: int) -> int:
    """Every NAMESPACES-th leaf; returns how many that were."""
    await settled(life)
    await begin(life, FULL)
    pool = {"apiVersion": API_VERSION, "kind": "RolloutPool", "metadata": {"name": "spot"}, "spec": POOL}
    await life.api.request("POST", ROLLOUT_POOL.path(life.namespace), pool)

    async def quiet() -> bool:
        pools = [name for name in await life.state() if name.startswith("ReplicaSet/")]
        return len(pools) == 2 and life.quiet()

    await eventually("the first state", quiet)
    tried = 0
    for owner in (Owner(life, TRAINING_JOB, JOB), Owner(life, ROLLOUT_POOL, "spot")):
        spec = (await owner.live())["spec"]
        schema = root_schema(KINDS[owner.kind.kind])["properties"]["spec"]
        first = await owner.wishes()
        for path, value in list(leaves(schema, spec))[part::NAMESPACES]:
            await owner.there_and_back(path, value, spec, first)
            tried += 1
        await eventually("the end of all writes", quiet)
        assert await owner.wishes() == first
    return tried


async def some_leaves_served(life: Life, part: int) -> int:
    """Every POLICIES-th leaf of a PolicyDeployment; returns how many that were."""
    await settled(life)
    return await leaves_served(life, SERVED, lambda found: found[part::POLICIES])


async def leaves_of_the_source(life: Life) -> int:
    """The leaves of one that follows a job; returns how many that were."""
    await settled(life)
    await begin(life, FULL)
    checkpoints = {
        which: {
            "name": which, "uri": f"s3://bucket/{which}", "digest": f"sha256:{steps:064x}",
            "steps": steps, "policyVersion": 1, "time": "2026-01-01T00:00:00Z",
        }
        for which, steps in (("best", 100), ("latest", 200))
    }  # fmt: skip

    async def has_status() -> bool:
        return "status" in await life.job()

    await eventually("the operator has seen the job", has_status)
    await life.api.merge(f"{life.path()}/status", {"status": {"checkpoints": checkpoints}})
    own = ("source", "replicas")
    return await leaves_served(life, FOLLOWING, lambda found: [one for one in found if one[0][0] in own])


async def leaves_served(
    life: Life, spec: Json, chosen: Callable[[list[tuple[Path, Any]]], list[tuple[Path, Any]]]
) -> int:
    """Some leaves of a PolicyDeployment; returns how many that were."""
    kind = POLICY_DEPLOYMENT
    obj = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": {"name": "walker"}, "spec": spec}
    await life.api.request("POST", kind.path(life.namespace), obj)
    owner = Served(life, kind, "walker")

    async def quiet() -> bool:
        return any(name.startswith("Deployment/") for name in await owner.wishes()) and life.quiet()

    await eventually("the first state", quiet)
    spec, first = (await owner.live())["spec"], await owner.wishes()
    found = chosen(list(leaves(root_schema(KINDS[kind.kind])["properties"]["spec"], spec)))
    for path, value in found:
        await owner.there_and_back(path, value, spec, first)
    await eventually("the end of all writes", quiet)
    assert await owner.wishes() == first
    await owner.end()
    return len(found)
