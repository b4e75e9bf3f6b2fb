"""The life of a job, told in scenes, and what there is of it after each: always the same."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from kubelet import Api, Kubelet
from proxy import Proxy
from ratchet_operator.drift import WANTED_HASH
from ratchet_operator.kinds import (
    API_VERSION,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    JOB_LABEL,
    POD,
    ROLLOUT_POOL,
    SECRET,
    SERVICE,
    TRAINING_JOB,
    WORKER_SET,
    Kind,
)

from ratchet.api.v1alpha1 import TrainerStatus
from ratchet.api.v1alpha1.trainingjob import Progress

Json = dict[str, Any]
JOB = "walker"
SPEC: Json = {
    "environment": {"id": "CartPole-v1"},
    "algorithm": {"ppo": {"minibatchSize": 64}},
    "rollouts": {"replicas": 2},
    "checkpoint": {"s3": {"bucket": "bucket"}},
    "stop": {"maxSteps": 100_000},
}
CHILDREN = (DEPLOYMENT, SERVICE, CONFIG_MAP, SECRET, ROLLOUT_POOL, WORKER_SET, POD)
DEADLINE = 90.0
QUIET = 2.5
"""Seconds without a write that make a state a steady one; longer than the operator's resync."""

State = dict[str, Json]


async def eventually(what: str, probe: Callable[[], Awaitable[Any]], deadline: float = DEADLINE) -> Any:
    """The first truthy answer of `probe`.

    Raises:
        AssertionError: `deadline` seconds went by; names `what` and the last answer.

    """
    end = time.monotonic() + deadline
    while True:
        answer = await probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline:.0f} s")
        await asyncio.sleep(0.15)


@dataclass
class Life:
    """One job in a namespace of its own."""

    api: Api
    kubelet: Kubelet
    proxies: tuple[Proxy, ...]
    namespace: str
    states: list[State] = field(default_factory=list[State])
    uid: str = ""

    async def live(self, as_before: "Life | None" = None) -> None:
        """Go through all scenes. Without a life to compare with, each ends when nothing is written any more;
        with one, when all is as it was there.

        Raises:
            AssertionError: a scene does not end as it should.

        """
        await self.settle_in()
        for number, (scene, end) in enumerate(SCENES.items()):
            await scene(self)
            if as_before is None:

                async def over(end: tuple[str, ...] = end) -> bool:
                    return await self.summary() == end and self.quiet()

                await eventually(f"{end} after {scene.__name__}", over)
            elif scene is not removal:
                await self.becomes(as_before.states[number], scene.__name__)
            if scene is not removal:
                self.states.append(await self.state())

        async def over_for_good() -> bool:
            return self.quiet() and await self.state() == {}

        await eventually("nothing of the job left, and nothing written any more", over_for_good)

    async def summary(self) -> tuple[str, ...]:
        """Reason of the condition that matters, attempt, steps, and how many workers are ready."""
        status = (await self.job()).get("status", {})
        true = {c["type"]: c["reason"] for c in status.get("conditions", []) if c["status"] == "True"}
        reason = next(
            (true[kind] for kind in ("Succeeded", "Failed", "Suspended", "Progressing") if kind in true), ""
        )
        steps, ready = status.get("progress", {}).get("steps"), status.get("workers", {}).get("ready")
        return (reason, *(str(value) for value in (status.get("attempt"), steps, ready)))

    def quiet(self) -> bool:
        """Whether the operator has written nothing for a while."""
        last = max(
            (write.at for proxy in self.proxies for write in proxy.writes(self.namespace)), default=None
        )
        return last is not None and time.monotonic() - last > QUIET

    async def settle_in(self) -> None:
        """Make the namespace."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        space = {"metadata": {"name": self.namespace, "labels": labels}}
        await self.api.request("POST", "/api/v1/namespaces", space)

    async def becomes(self, wanted: State, scene: str) -> None:
        state: State = {}

        async def same() -> bool:
            nonlocal state
            state = await self.state()
            return state == wanted

        try:
            await eventually(scene, same)
        except AssertionError as error:
            raise AssertionError(f"{self.namespace}, {error}\n{difference(wanted, state)}") from None

    def path(self, kind: Kind = TRAINING_JOB, name: str = JOB) -> str:
        return kind.path(self.namespace, name)

    async def edit(self, change: Json) -> None:
        await self.api.merge(self.path(), {"spec": change})

    def trainer_says(self, state: Any, steps: int, **more: Any) -> None:
        progress = Progress(steps=steps, updates=steps // 100)
        said = TrainerStatus(uid=self.uid, attempt=1, epoch=1, state=state, progress=progress, **more)
        self.kubelet.says[self.uid] = said

    async def job(self) -> Json:
        return await self.api.request("GET", self.path()) or {}

    async def state(self) -> State:
        """Every object of the job, by kind and name, without what differs from life to life."""
        job = await self.job()
        found = [(TRAINING_JOB, job)] if job else []
        for kind in CHILDREN:
            listed = await self.api.list(kind.path(self.namespace), JOB_LABEL)
            found += [(kind, obj) for obj in listed]
        pods = Counter(_component(obj) for kind, obj in found if kind is POD)
        state = {
            f"{kind.kind}/{self._plain(obj['metadata']['name'])}": self._essence(kind, obj)
            for kind, obj in found
            if kind is not POD and not (kind is WORKER_SET and _owner(obj) != ROLLOUT_POOL.kind)
        }
        return {**state, **{f"Pod/{name}": {"count": count} for name, count in pods.items()}}

    async def events(self) -> Counter[tuple[str, str]]:
        """What was told, by reason and sentence."""
        listed = await self.api.list(EVENT.path(self.namespace))
        return Counter(
            (event["reason"], self._plain(event["message"]))
            for event in listed
            if event["involvedObject"]["apiVersion"] == API_VERSION
        )

    def creations(self) -> Counter[tuple[str, str]]:
        """How often the operator made each object; Events apart, which may be lost and never come twice."""
        made: Counter[tuple[str, str]] = Counter()
        for proxy in self.proxies:
            for (resource, name), count in proxy.creations(self.namespace).items():
                made[resource, self._plain(name)] += count * (resource != EVENT.plural)
        return +made

    def pods(self) -> Counter[tuple[str, str]]:
        """How many pods ran, by component and attempt."""
        return Counter(
            {key[1:]: count for key, count in self.kubelet.ran.items() if key[0] == self.namespace}
        )

    def _plain(self, text: str) -> str:
        text = plain(text, self.namespace)
        text = re.sub(rf"\b{JOB}-trainer-[0-9a-f]+-[a-z0-9]{{5}}\b", "POD", text)
        return re.sub(r"\b[0-9a-f]{8}\b", "HASH", text)

    def _essence(self, kind: Kind, obj: Json) -> Json:
        metadata = obj["metadata"]
        kept = {
            "labels": metadata.get("labels"),
            "annotations": {
                key: value for key, value in metadata.get("annotations", {}).items()
                if key not in (WANTED_HASH, "deployment.kubernetes.io/revision")
            },
            "owners": metadata.get("ownerReferences"),
            "deleting": "deletionTimestamp" in metadata,
        }  # fmt: skip
        essence = {key: value for key, value in obj.items() if key not in ("metadata", "apiVersion", "kind")}
        if kind is SECRET:
            essence = {"keys": sorted(obj["data"])}
        if kind is SERVICE:
            essence["spec"] = {k: v for k, v in obj["spec"].items() if k not in ("clusterIP", "clusterIPs")}
        if kind in (DEPLOYMENT, WORKER_SET):
            essence.pop("status")
        plain = json.loads(self._plain(json.dumps({**kept, **essence})))
        return _without(plain, "activeSeconds")


def plain(text: str, namespace: str) -> str:
    """Without what differs from one namespace to the other."""
    text = text.replace(namespace, "NAMESPACE")
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID", text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME", text)


def _component(pod: Json) -> str:
    labels = pod["metadata"]["labels"]
    going = " going" if "deletionTimestamp" in pod["metadata"] else ""
    return f"{labels['ratchet.dev/component']}{going}"


def _owner(obj: Json) -> str:
    return next((owner["kind"] for owner in obj["metadata"].get("ownerReferences", [])), "")


def _without(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, name) for key, inner in value.items() if key != name}
    return [_without(inner, name) for inner in value] if isinstance(value, list) else value


def difference(one: Any, other: Any, path: str = "") -> str:
    """Where two JSON values differ, a line for each place."""
    if isinstance(one, dict) and isinstance(other, dict):
        lines = [difference(one.get(k), other.get(k), f"{path}.{k}") for k in sorted({*one, *other})]
        return "\n".join(line for line in lines if line)
    return "" if one == other else f"{path}: {json.dumps(one)[:300]} became {json.dumps(other)[:300]}"


async def begin(life: Life, spec: Json = SPEC) -> None:
    job = {"apiVersion": API_VERSION, "kind": "RLTrainingJob", "metadata": {"name": JOB}, "spec": spec}
    made = await life.api.request("POST", TRAINING_JOB.path(life.namespace), job)
    assert made is not None
    life.uid = made["metadata"]["uid"]
    life.trainer_says("Training", 0)


async def progress(life: Life) -> None:
    life.trainer_says("Training", 1000)


async def more_workers(life: Life) -> None:
    await life.edit({"rollouts": {"replicas": 3}})


async def failure(life: Life) -> None:
    await life.kubelet.fail_trainer(life.namespace, exit_code=1)


async def suspension(life: Life) -> None:
    await life.edit({"suspend": True})


async def resumption(life: Life) -> None:
    await life.edit({"suspend": False})


async def success(life: Life) -> None:
    life.trainer_says("Finished", 100_000, finished_reason="MaxStepsReached", message="100000 steps.")


async def removal(life: Life) -> None:
    await life.edit({"ttlSecondsAfterFinished": 0})


SCENES = {
    begin: ("Training", "1", "0", "2"),
    progress: ("Training", "1", "1000", "2"),
    more_workers: ("Training", "1", "1000", "3"),
    failure: ("Training", "2", "1000", "3"),
    suspension: ("SuspendedByUser", "2", "1000", "0"),
    resumption: ("Training", "2", "1000", "3"),
    success: ("MaxStepsReached", "2", "100000", "0"),
    removal: ("", "None", "None", "None"),
}
"""What happens, and how it ends: reason, attempt, steps, ready workers."""
