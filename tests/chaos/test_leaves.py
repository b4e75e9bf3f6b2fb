"""Each leaf of each spec changed there and back: the first state returns, or the change is refused."""

import asyncio
from pathlib import Path as File

import pytest
from kubelet import RefusedError
from leaves import Path, changed, leaves
from lives import JOB, SPEC, Json, Life, begin, difference, eventually
from operators import Chart
from ratchet_operator.kinds import API_VERSION, ROLLOUT_POOL, TRAINING_JOB, Kind
from stage import stage

from ratchet.api.crd import root_schema
from ratchet.api.v1alpha1.kinds import KINDS

NAMESPACES = 8
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
FIXED: dict[Kind, tuple[Path, ...]] = {
    TRAINING_JOB: (
        ("environment",), ("algorithm",), ("experience",),
        ("checkpoint", "s3", "bucket"), ("checkpoint", "s3", "prefix"),
    ),
    ROLLOUT_POOL: (("trainingJobRef",),),
}  # fmt: skip
"""What can't be changed."""
ALWAYS_REFUSED = {"namespace", "hostNetwork", "privileged", "hostPath"}
NEEDS: dict[Path, tuple[Path, str]] = {
    ("rollouts", "maxPolicyLag"): (("rollouts", "mode"), "BoundedAsync"),
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
        if fixed or path[-1] in ALWAYS_REFUSED:
            with pytest.raises(RefusedError, match="can't be changed" if fixed else None) as refusal:
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
            await eventually(f"the first state after {what} = {value!r}", returned, 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{difference(first, now)}") from None


def test_each_leaf_of_each_spec_changed_there_and_back_leaves_nothing(chart: Chart, tmp_path: File):
    async def all_leaves() -> int:
        async with (
            stage(chart, tmp_path, pods_run=False) as on,
            on.proxy() as proxy,
            on.operator(proxy),
            asyncio.TaskGroup() as group,
        ):
            lives = [on.life(f"leaves-{number}", proxy) for number in range(NAMESPACES)]
            tasks = [group.create_task(some_leaves(life, number)) for number, life in enumerate(lives)]
            return sum([await task for task in tasks])

    tried = asyncio.run(all_leaves())
    assert tried > 100, "the schema has more leaves than that"


async def some_leaves(life: Life, part: int) -> int:
    """Every NAMESPACES-th leaf; returns how many that were."""
    await life.settle_in()
    secret = {"metadata": {"name": "s3"}, "stringData": {"AWS_ACCESS_KEY_ID": "a"}}
    await life.api.request("POST", f"/api/v1/namespaces/{life.namespace}/secrets", secret)
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
