"""A small cluster in memory for the reconcilers to live in: API server, controllers, kubelet, one trainer."""

import copy
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from jsonpatch import patched
from ratchet_operator.drift import quantity
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB_LABEL,
    POD,
    POOL_LABEL,
    ROLLOUT_POOL,
    SERVICE,
    TRAINING_JOB,
    WORKER_SET,
    Json,
    Kind,
    items,
    labels_of,
    name_of,
    spec_of,
    status_of,
    sub,
    uid_of,
)
from ratchet_operator.ledger import stamp
from ratchet_operator.plan import Amend, Apply, Plan
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.reconcile.job import JobSeen, reconcile_job
from ratchet_operator.reconcile.pool import PoolSeen, reconcile_pool
from ratchet_operator.settings import Installation

from ratchet.api.v1alpha1 import TrainerStatus

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACE = "team"
SOON = 60.0
JOB_SPEC: Json = {
    "environment": {"id": "CartPole-v1"},
    "algorithm": {"ppo": {"minibatchSize": 64}},
    "rollouts": {"replicas": 2, "minReplicas": 1, "maxReplicas": 4},
    "checkpoint": {"s3": {"bucket": "bucket"}},
    "stop": {"maxSteps": 1000},
    "failurePolicy": {"backoffLimit": 1000},
}


class ConflictError(Exception):
    """A resourceVersion precondition failed."""


class CrashError(Exception):
    """The operator died between two writes."""


class World:
    """One namespace, in which nothing happens but by the methods here."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Json] = {}
        self.secret_uid: str | None = None
        self.devices: dict[str, int] = {}
        self.counter = itertools.count(1)
        self.now = START
        self.writes = 0
        self.creations: dict[str, int] = {}
        self.progress_written: dict[str, datetime] = {}
        self.trainer_finished = False
        self.trainer_answers = True
        self.trainers_asked = True
        self.passed_over: list[str] = []
        self.steps = 0
        self.events: list[str] = []
        self.die_after: int | None = None
        self.waits: list[float] = []
        self.kept: tuple[str, ...] = ()

    def put(self, obj: Json) -> Json:
        old = self.objects.get((obj["kind"], name_of(obj)))
        obj = copy.deepcopy(obj)
        metadata = obj["metadata"]
        metadata["namespace"] = NAMESPACE
        metadata["uid"] = uid_of(old) if old else f"uid-{next(self.counter)}"
        metadata["resourceVersion"] = str(next(self.counter))
        created = sub(old, "metadata").get("creationTimestamp", stamp(self.now))
        metadata.setdefault("creationTimestamp", created)
        changed = not old or spec_of(old) != spec_of(obj)
        metadata["generation"] = sub(old, "metadata").get("generation", 0) + int(changed)
        if old is not None and "status" in old and "status" not in obj:
            obj["status"] = old["status"]
        self.objects[obj["kind"], name_of(obj)] = obj
        return obj

    def get(self, kind: Kind, name: str) -> Json | None:
        return self.objects.get((kind.kind, name))

    def all(self, kind: Kind) -> list[Json]:
        return [obj for (found, _), obj in sorted(self.objects.items()) if found == kind.kind]

    def delete(self, kind: str, name: str) -> None:
        obj = self.objects.pop((kind, name), None)
        if obj is None:
            return
        for child in list(self.objects.values()):
            owners = sub(child, "metadata").get("ownerReferences", [])
            if any(owner["uid"] == uid_of(obj) for owner in owners):
                self.delete(child["kind"], name_of(child))

    # what the operator does

    def _count(self) -> None:
        if self.die_after is not None:
            if self.die_after == 0:
                raise CrashError
            self.die_after -= 1
        self.writes += 1

    def apply(self, apply: Apply) -> None:
        self._count()
        live = self.get(apply.kind, name_of(apply.obj))
        if apply.version is not None and (
            live is None or live["metadata"]["resourceVersion"] != apply.version
        ):
            raise ConflictError
        if live is None:
            self.creations[f"{apply.kind.kind}/{name_of(apply.obj)}"] = (
                self.creations.get(f"{apply.kind.kind}/{name_of(apply.obj)}", 0) + 1
            )
        self.put(_as_server_keeps_it(apply.obj))

    def execute(self, key: Kind, name: str, plan: Plan) -> None:
        for _ in plan.secrets:
            self._count()
            self.secret_uid = self.secret_uid or f"uid-{next(self.counter)}"
        for apply in sorted(plan.apply, key=lambda apply: apply.kind is not CONFIG_MAP):
            self.apply(apply)
        for amend in plan.amend:
            self._count()
            self.amend(amend)
        obj = self.get(key, name)
        if plan.status is not None and obj is not None:
            self._count()
            _merge(obj.setdefault("status", {}), plan.status)
            obj["metadata"]["resourceVersion"] = str(next(self.counter))
            self.progress_written[name] = self.now
        for occurrence in plan.occurrences:
            self._count()
            self.events.append(occurrence.reason)
        for delete in plan.delete:
            self._count()
            live = self.objects.get((delete.kind.kind, delete.name))
            if live is not None and uid_of(live) == delete.uid:
                self.delete(delete.kind.kind, delete.name)

    def amend(self, amend: Amend) -> None:
        """As the API server does; nothing is changed where a test does not hold."""
        live = self.get(amend.kind, amend.name)
        found = patched(live, amend.operations) if live is not None else None
        if found is None:
            raise ConflictError
        self.put(found)

    def operate(self, seen: "World | None" = None) -> None:
        """One step for every object, as seen now or as it was seen before."""
        view = seen or self
        self.waits = []
        for kind in (TRAINING_JOB, ROLLOUT_POOL):
            for obj in view.all(kind):
                plan = view.plan(kind, obj, self.now)
                self.waits += [plan.requeue_after] if plan.requeue_after is not None else []
                try:
                    self.execute(kind, name_of(obj), plan)
                except ConflictError:
                    continue

    def plan(self, kind: Kind, obj: Json, now: datetime) -> Plan:
        obj = copy.deepcopy(obj)
        if kind is TRAINING_JOB:
            return reconcile_job(obj, self._job_seen(obj), now)
        return reconcile_pool(obj, self._pool_seen(obj), now)

    def _job_seen(self, job: Json) -> JobSeen:
        named = {kind: {name_of(obj): obj for obj in self.all(kind)} for kind in (DEPLOYMENT, SERVICE)}
        return JobSeen(
            Installation(),
            config_map=self.get(CONFIG_MAP, "job-config"),
            deployments=named[DEPLOYMENT],
            services=named[SERVICE],
            pool=self.get(ROLLOUT_POOL, "job-rollouts"),
            pods=tuple(pod for pod in self.all(POD) if labels_of(pod).get(JOB_LABEL) == "job"),
            secrets={"job-redis": self.secret_uid},
            devices=self.devices,
            trainer=self.trainer(job),
            trainers_asked=self.trainers_asked,
            progress_written=self.progress_written.get("job"),
            kept=self.kept,
        )

    def _pool_seen(self, pool: Json) -> PoolSeen:
        job = self.get(TRAINING_JOB, "job")
        return PoolSeen(
            Installation(),
            job=job,
            config_map=self.get(CONFIG_MAP, "job-config"),
            worker_sets={name_of(obj): obj for obj in self.all(WORKER_SET)},
            pods=tuple(pod for pod in self.all(POD) if labels_of(pod).get(POOL_LABEL) == name_of(pool)),
            secrets={"job-redis": self.secret_uid},
            trainer=self.trainer(job) if job else None,
            progress_written=self.progress_written.get(name_of(pool)),
        )

    def pods_of(self, component: str) -> list[Json]:
        """By the beginning of their names: `job-trainer`, `job-rollouts`, `job-redis`."""
        return [pod for pod in self.all(POD) if name_of(pod).startswith(component)]

    def trainer(self, job: Json) -> TrainerStatus | None:
        if not self.trainer_answers or not any(is_ready(pod) for pod in self.pods_of("job-trainer")):
            return None
        return self.trainer_status(job)

    def trainer_status(self, job: Json) -> TrainerStatus:
        """What the trainer says when it can be asked."""
        state = "Finished" if self.trainer_finished else "Training"
        return TrainerStatus.model_validate(
            {
                "uid": uid_of(job),
                "attempt": 1,
                "epoch": 1,
                "state": state,
                "finishedReason": "MaxStepsReached" if self.trainer_finished else None,
                "progress": {"steps": self.steps},
                "passedOver": self.passed_over,
            }
        )

    # what the rest of the cluster does

    def turn(self) -> None:
        """Controllers and kubelet catch up."""
        for deployment in self.all(DEPLOYMENT):
            template = deployment["spec"]["template"]
            count = deployment["spec"]["replicas"]
            self._pods(deployment, template, [f"{name_of(deployment)}-{i}" for i in range(count)], exact=True)
        for workers in self.all(WORKER_SET):
            names = [f"{name_of(workers)}-{i}" for i in range(workers["spec"]["replicas"])]
            self._pods(workers, workers["spec"]["template"], names, exact=False)
        for pod in self.all(POD):
            if not is_ready(pod):
                status = pod["status"]
                status["phase"] = "Running"
                status["conditions"] = [{"type": "Ready", "status": "True"}]

    def _pods(self, owner: Json, template: Json, names: list[str], exact: bool) -> None:
        for pod in self.all(POD):
            if pod["metadata"]["ownerReferences"][0]["uid"] != uid_of(owner):
                continue
            outdated = exact and pod["spec"] != template["spec"]
            if name_of(pod) not in names or outdated:
                self.delete("Pod", name_of(pod))
        for name in names:
            if self.get(POD, name) is None:
                container = template["spec"]["containers"][0]["name"]
                self.put(
                    {
                        "kind": "Pod",
                        "metadata": {
                            "name": name,
                            "labels": template["metadata"]["labels"],
                            "ownerReferences": [
                                {"uid": uid_of(owner), "controller": True, "kind": owner["kind"]}
                            ],
                        },
                        "spec": template["spec"],
                        "status": {"containerStatuses": [{"name": container, "restartCount": 0}]},
                    }
                )

    def settle(self) -> int:
        """Let time pass until nobody writes or soon looks again; returns how many rounds that took."""
        for rounds in range(1, 40):
            self.now += timedelta(seconds=10)
            self.turn()
            before = self.writes
            self.operate()
            if self.writes == before and min(self.waits, default=SOON) >= SOON:
                return rounds
        raise AssertionError(
            f"still writing: {[self.plan(TRAINING_JOB, job, self.now) for job in self.all(TRAINING_JOB)]}"
        )


def _merge(live: Json, patch: Json) -> None:
    for key, value in patch.items():
        if value is None:
            live.pop(key, None)
        elif isinstance(value, dict) and isinstance(live.get(key), dict):
            _merge(live[key], value)
        else:
            live[key] = copy.deepcopy(value)


def _as_server_keeps_it(obj: Any) -> Any:
    """Defaults added, empty values dropped, quantities written another way."""
    obj = copy.deepcopy(obj)
    if obj["kind"] in ("Deployment", "ReplicaSet"):
        pod = obj["spec"]["template"]["spec"]
        pod["dnsPolicy"] = "ClusterFirst"
        for container in pod["containers"]:
            requests = container["resources"].get("requests", {})
            if requests.get("cpu") and quantity(requests["cpu"]) == quantity("200m"):
                requests["cpu"] = "0.2"
            for variable in container.get("env", []):
                if variable.get("value") == "":
                    del variable["value"]
    return obj


def new_world(**spec: Any) -> World:
    """With one job of the usual spec, changed as told, which nobody has looked at."""
    world = World()
    world.put(
        {"kind": "RLTrainingJob", "metadata": {"name": "job"}, "spec": {**copy.deepcopy(JOB_SPEC), **spec}}
    )
    return world


# What can happen. Each takes the world and a number to choose with.


def conditions(obj: Json | None) -> dict[str, str]:
    """Status of each condition."""
    return {item["type"]: item["status"] for item in status_of(obj).get("conditions", [])}


def condition(obj: Json | None, kind: str) -> Json:
    """The condition of that type, empty where there is none."""
    return next((found for found in items(status_of(obj), "conditions") if found["type"] == kind), {})


def end_container(pod: Json, code: int, message: str = "", **ended: Any) -> None:
    """The pod's only container ends and is started again."""
    seen = pod["status"]["containerStatuses"][0]
    seen["lastState"] = {"terminated": {"exitCode": code, "message": message, **ended}}
    seen["restartCount"] += 1
