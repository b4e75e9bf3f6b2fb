"""The reconcilers replayed over random histories of a small cluster: they always reach the wanted state, and
then write nothing.
"""

import contextlib
import copy
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    WORKER_JOB,
    Json,
    Kind,
    labels_of,
    name_of,
    spec_of,
    status_of,
    sub,
    uid_of,
)
from ratchet_operator.ledger import stamp
from ratchet_operator.plan import Apply, Plan
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
    """API server, Deployment and Job controllers, kubelet and trainer of one namespace, in a few lines."""

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
        self.steps = 0
        self.events: list[str] = []
        self.die_after: int | None = None
        self.waits: list[float] = []

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
            progress_written=self.progress_written.get("job"),
        )

    def _pool_seen(self, pool: Json) -> PoolSeen:
        job = self.get(TRAINING_JOB, "job")
        return PoolSeen(
            Installation(),
            job=job,
            config_map=self.get(CONFIG_MAP, "job-config"),
            worker_jobs={name_of(obj): obj for obj in self.all(WORKER_JOB)},
            pods=tuple(pod for pod in self.all(POD) if labels_of(pod).get(POOL_LABEL) == name_of(pool)),
            secrets={"job-redis": self.secret_uid},
            trainer=self.trainer(job) if job else None,
            progress_written=self.progress_written.get(name_of(pool)),
        )

    def trainer(self, job: Json) -> TrainerStatus | None:
        running = [pod for pod in self.all(POD) if name_of(pod).startswith("job-trainer") and _is_ready(pod)]
        if not running:
            return None
        state = "Finished" if self.trainer_finished else "Training"
        return TrainerStatus.model_validate(
            {
                "uid": uid_of(job),
                "attempt": 1,
                "epoch": 1,
                "state": state,
                "finishedReason": "MaxStepsReached" if self.trainer_finished else None,
                "progress": {"steps": self.steps},
            }
        )

    # what the rest of the cluster does

    def turn(self) -> None:
        """Controllers and kubelet catch up."""
        for deployment in self.all(DEPLOYMENT):
            template = deployment["spec"]["template"]
            count = deployment["spec"]["replicas"]
            self._pods(deployment, template, [f"{name_of(deployment)}-{i}" for i in range(count)], exact=True)
        for job in self.all(WORKER_JOB):
            count = 0 if job["spec"]["suspend"] else job["spec"]["parallelism"]
            self._pods(
                job, job["spec"]["template"], [f"{name_of(job)}-{i}" for i in range(count)], exact=False
            )
        for pod in self.all(POD):
            if not _is_ready(pod):
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


def _is_ready(pod: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status_of(pod).get("conditions", []))


def _merge(live: Json, patch: Json) -> None:
    for key, value in patch.items():
        if value is None:
            live.pop(key, None)
        elif isinstance(value, dict) and isinstance(live.get(key), dict):
            _merge(live[key], value)
        else:
            live[key] = copy.deepcopy(value)


def _as_server_keeps_it(obj: Any) -> Any:
    """Defaults added, empty lists dropped, quantities written another way."""
    obj = copy.deepcopy(obj)
    if obj["kind"] in ("Deployment", "Job"):
        pod = obj["spec"]["template"]["spec"]
        pod["dnsPolicy"] = "ClusterFirst"
        for container in pod["containers"]:
            requests = container["resources"].get("requests", {})
            if requests.get("cpu") and quantity(requests["cpu"]) == quantity("200m"):
                requests["cpu"] = "0.2"
    return obj


def new_world(**spec: Any) -> World:
    world = World()
    world.put(
        {"kind": "RLTrainingJob", "metadata": {"name": "job"}, "spec": {**copy.deepcopy(JOB_SPEC), **spec}}
    )
    return world


# What can happen. Each takes the world and a number to choose with.


def fail_trainer(world: World, choice: int) -> None:
    code = (1, 13, 137, 14)[choice % 4]
    for pod in world.all(POD):
        if name_of(pod).startswith("job-trainer"):
            seen = pod["status"]["containerStatuses"][0]
            seen["lastState"] = {"terminated": {"exitCode": code, "message": "words\nlast words"}}
            seen["restartCount"] += 1


def toggle_suspend(world: World, choice: int) -> None:
    job = world.get(TRAINING_JOB, "job")
    if job is not None:
        spec = {**spec_of(job), "suspend": bool(choice % 2)}
        world.put({**job, "spec": spec})


def edit_stop(world: World, choice: int) -> None:
    job = world.get(TRAINING_JOB, "job")
    if job is not None:
        world.put({**job, "spec": {**spec_of(job), "stop": {"maxSteps": 1000 + choice % 3}}})


def edit_replicas(world: World, choice: int) -> None:
    job = world.get(TRAINING_JOB, "job")
    if job is not None:
        rollouts = {"replicas": 1 + choice % 3, "minReplicas": 1, "maxReplicas": 4}
        world.put({**job, "spec": {**spec_of(job), "rollouts": rollouts}})


def scale_pool(world: World, choice: int) -> None:
    pool = world.get(ROLLOUT_POOL, "job-rollouts")
    if pool is not None:
        world.put({**pool, "spec": {**spec_of(pool), "replicas": choice % 7}})


def delete_child(world: World, choice: int) -> None:
    children = [obj for obj in world.objects.values() if obj["kind"] != "RLTrainingJob"]
    # A forged end can't be told from an end when the last child that contradicts it goes in the same moment.
    if len(children) > 1:
        victim = children[choice % len(children)]
        world.delete(victim["kind"], name_of(victim))


def delete_secret(world: World, choice: int) -> None:
    world.secret_uid = None


def drift(world: World, choice: int) -> None:
    for deployment in world.all(DEPLOYMENT):
        spec = copy.deepcopy(spec_of(deployment))
        if choice % 2:
            spec["replicas"] = 5
        else:
            spec["template"]["spec"]["containers"][0]["image"] = "evil:latest"
        world.put({**deployment, "spec": spec})
    for job in world.all(WORKER_JOB):
        world.put({**job, "spec": {**spec_of(job), "parallelism": 9, "completions": 9}})


def wipe_status(world: World, choice: int) -> None:
    for kind in (TRAINING_JOB, ROLLOUT_POOL):
        for obj in world.all(kind):
            obj["status"] = {}


def forge_status(world: World, choice: int) -> None:
    job = world.get(TRAINING_JOB, "job")
    if job is not None and world.get(CONFIG_MAP, "job-config") is not None:
        condition = {"type": "Succeeded", "status": "True", "reason": "Forged", "message": "",
                     "lastTransitionTime": "2020-01-01T00:00:00Z"}  # fmt: skip
        job["status"] = {
            "conditions": [condition], "attempt": 50, "failuresCounted": 49,
            "completionTime": "2020-01-01T00:00:00Z", "workers": {"wanted": 77, "ready": 77},
        }  # fmt: skip


def complete_worker(world: World, choice: int) -> None:
    for job in world.all(WORKER_JOB):
        job["status"] = {"completedIndexes": "0", "succeeded": 1}


def progress(world: World, choice: int) -> None:
    world.steps += choice


def operate(world: World, choice: int) -> None:
    world.operate()


def turn(world: World, choice: int) -> None:
    world.now += timedelta(seconds=choice % 4)
    world.turn()


def crash(world: World, choice: int) -> None:
    world.die_after = choice % 5
    try:
        world.operate()
    except CrashError:
        world.progress_written = {}
    world.die_after = None


def operate_on_stale_view(world: World, choice: int) -> None:
    """The caches know nothing of what happens between; only the ConfigMap is protected by its version."""
    stale = copy.deepcopy(world)
    world.operate()
    world.turn()
    world.operate(seen=stale)


HAPPENINGS = [
    fail_trainer, toggle_suspend, edit_stop, edit_replicas, scale_pool, delete_child, delete_secret,
    drift, wipe_status, forge_status, complete_worker, progress, operate, turn, crash,
    operate_on_stale_view, operate, turn,
]  # fmt: skip
HISTORIES = st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 30)), max_size=25)


def conditions(obj: Json | None) -> dict[str, str]:
    return {item["type"]: item["status"] for item in status_of(obj).get("conditions", [])}


def assert_wanted_state(world: World) -> None:
    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    suspended = spec_of(job).get("suspend", False)
    status = status_of(job)
    trainer, redis = world.get(DEPLOYMENT, "job-trainer"), world.get(DEPLOYMENT, "job-redis")
    assert trainer is not None
    assert redis is not None
    assert spec_of(trainer)["replicas"] == spec_of(redis)["replicas"] == (0 if suspended else 1)
    environment = {
        item["name"]: item["value"] for item in spec_of(trainer)["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["RATCHET_ATTEMPT"] == str(status["attempt"])
    assert "evil:latest" not in str(world.objects)
    assert world.get(SERVICE, "job-redis")
    assert world.get(SERVICE, "job-trainer")
    assert f"'maxSteps': {spec_of(job)['stop']['maxSteps']}" in str(spec_of(job))
    config = world.get(CONFIG_MAP, "job-config")
    assert config is not None
    assert f'"maxSteps":{spec_of(job)["stop"]["maxSteps"]}' in config["data"]["job.json"]
    pool = world.get(ROLLOUT_POOL, "job-rollouts")
    assert pool is not None
    workers = world.all(WORKER_JOB)
    if suspended:
        assert all(spec_of(found)["suspend"] for found in workers)
        assert conditions(job) == {"Suspended": "True", "Progressing": "False"}
    else:
        assert len(workers) == 1
        wanted = max(1, min(4, spec_of(pool)["replicas"]))
        assert spec_of(workers[0])["parallelism"] == spec_of(workers[0])["completions"] == wanted
        assert not spec_of(workers[0])["suspend"]
        assert conditions(pool) == {"Ready": "True"}
        assert conditions(job) == {"Progressing": "True", "ExperienceReady": "True", "RolloutsReady": "True"}
        assert status["workers"] == {"wanted": wanted, "ready": wanted}
        assert status["progress"]["steps"] == world.steps
    assert "completionTime" not in status
    judged = [failure["id"] for failure in status["failures"]]
    assert len(judged) == len(set(judged))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES)
def test_any_history_ends_in_the_wanted_state_and_then_in_silence(history):
    world = new_world()
    for happening, choice in history:
        happening(world, choice)
    world.settle()
    assert_wanted_state(world)

    before = world.writes
    world.now += timedelta(hours=1)
    world.operate()

    assert world.writes == before


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES)
def test_after_any_history_a_finished_trainer_ends_the_job_once(history):
    world = new_world()
    for happening, choice in history:
        happening(world, choice)
    toggle_suspend(world, 0)
    world.settle()
    world.trainer_finished = True
    world.settle()

    job = world.get(TRAINING_JOB, "job")
    assert conditions(job) == {"Succeeded": "True", "Progressing": "False"}
    assert {obj["kind"] for obj in world.objects.values()} == {"RLTrainingJob", "ConfigMap"}
    assert world.events.count("Succeeded") == 1
    assert status_of(job)["progress"]["steps"] == world.steps

    wipe_status(world, 0)
    world.settle()

    assert conditions(world.get(TRAINING_JOB, "job")) == {"Succeeded": "True", "Progressing": "False"}
    assert status_of(world.get(TRAINING_JOB, "job"))["progress"]["steps"] == world.steps
    assert world.events.count("Succeeded") == 1


def live_a_life(world: World) -> None:
    for _ in range(6):
        world.operate()
        world.turn()
    world.trainer_finished = True
    for _ in range(3):
        world.operate()
        world.turn()


@pytest.mark.parametrize("writes", range(22))
def test_a_kill_after_any_write_creates_nothing_twice(writes):
    clean, world = new_world(), new_world()
    live_a_life(clean)

    world.die_after = writes
    with contextlib.suppress(CrashError):
        live_a_life(world)
    world.die_after = None
    live_a_life(world)
    world.settle()

    assert clean.writes > writes
    assert world.creations == clean.creations
    assert world.objects.keys() == clean.objects.keys()
    assert conditions(world.get(TRAINING_JOB, "job")) == {"Succeeded": "True", "Progressing": "False"}


@pytest.mark.parametrize(
    ("field", "there"),
    [
        ("suspend", True),
        ("stop", {"maxSteps": 7}),
        ("evaluation", {"episodes": 3}),
        ("rollouts", {"replicas": 3, "minReplicas": 1, "maxReplicas": 4}),
        ("rollouts", {**JOB_SPEC["rollouts"], "resources": {"limits": {"cpu": "1"}}}),
        ("rollouts", {**JOB_SPEC["rollouts"], "placement": {"nodeSelector": {"disk": "ssd"}}}),
        ("trainer", {"placement": {"nodeSelector": {"disk": "ssd"}}}),
        ("trainer", {"volumes": [{"name": "data", "mountPath": "/data", "configMap": "data"}]}),
        ("failurePolicy", {"backoffLimit": 1}),
        ("ttlSecondsAfterFinished", 60),
    ],
)
def test_a_field_changed_there_and_back_gives_the_first_state(field, there):
    world = new_world()
    world.settle()
    job = world.get(TRAINING_JOB, "job")
    assert job is not None

    def state() -> dict[str, Any]:
        kinds = {"ConfigMap", "Deployment", "Service", "RolloutPool", "Job"}
        return {
            f"{o['kind']}/{name_of(o)}": spec_of(o) or o.get("data")
            for o in world.objects.values()
            if o["kind"] in kinds
        }

    first = state()
    world.put({**job, "spec": {**spec_of(job), field: there}})
    world.settle()
    original = {key: value for key, value in spec_of(job).items() if key != field}
    if field in JOB_SPEC:
        original[field] = copy.deepcopy(JOB_SPEC[field])
    live = world.get(TRAINING_JOB, "job")
    assert live is not None
    world.put({**live, "spec": original})
    world.settle()

    assert state() == first


def test_each_failure_counts_once_and_numbers_the_next_attempt():
    world = new_world(failurePolicy={"backoffLimit": 2})
    world.settle()
    for counted in (1, 2):
        fail_trainer(world, 0)
        world.operate()
        world.operate()
        world.settle()
        status = status_of(world.get(TRAINING_JOB, "job"))
        assert (status["failuresCounted"], status["attempt"]) == (counted, counted + 1)

    fail_trainer(world, 0)
    world.settle()

    job = world.get(TRAINING_JOB, "job")
    failed = next(item for item in status_of(job)["conditions"] if item["type"] == "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "last words" in failed["message"]
    assert world.all(DEPLOYMENT) == []


def test_a_job_deleted_by_its_ttl_goes_when_the_clock_says_so():
    world = new_world(ttlSecondsAfterFinished=3600)
    world.settle()
    world.trainer_finished = True
    world.settle()
    assert world.get(TRAINING_JOB, "job") is not None

    world.now += timedelta(seconds=3600)
    world.operate()

    assert world.objects == {}


def test_an_ignored_failure_is_recorded_once_and_starts_no_attempt():
    world = new_world()
    world.settle()

    fail_trainer(world, 3)
    world.settle()

    status = status_of(world.get(TRAINING_JOB, "job"))
    assert [failure["action"] for failure in status["failures"]] == ["Ignore"]
    assert status["attempt"] == 1


def test_a_worker_that_ended_as_if_done_is_started_again_with_a_new_job():
    world = new_world()
    world.settle()
    before = uid_of(world.all(WORKER_JOB)[0])

    complete_worker(world, 0)
    world.settle()

    (after,) = world.all(WORKER_JOB)
    assert uid_of(after) != before


def test_a_worker_that_ended_as_if_done_after_long_work_does_not_wait():
    world = new_world()
    world.settle()
    before = uid_of(world.all(WORKER_JOB)[0])
    world.now += timedelta(hours=1)

    complete_worker(world, 0)
    for _ in range(2):
        world.operate()

    (after,) = world.all(WORKER_JOB)
    assert uid_of(after) != before


def test_an_image_that_always_ends_as_if_done_is_started_every_half_minute_and_says_so():
    world = new_world()
    for _ in range(4):
        world.operate()

    for _ in range(300):
        world.now += timedelta(seconds=1)
        complete_worker(world, 0)
        world.operate()

    (made,) = [count for name, count in world.creations.items() if name.startswith("Job/")]
    assert 9 <= made <= 11
    complete_worker(world, 0)
    world.operate()
    assert any(0 < wait <= 30 for wait in world.waits)
    (ready,) = status_of(world.get(ROLLOUT_POOL, "job-rollouts"))["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "WorkerExitedEarly")
    assert "image ratchet-rollout:dev exited with 0" in ready["message"]
    assert "exit with 143" in ready["message"]


def test_the_image_that_corrects_one_that_ends_as_if_done_does_not_wait():
    world = new_world()
    for _ in range(4):
        world.operate()
    complete_worker(world, 0)
    world.operate()

    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    world.put({**job, "spec": {**spec_of(job), "environment": {"id": "CartPole-v1", "image": "mine:2"}}})
    for _ in range(3):
        world.operate()

    (worker,) = world.all(WORKER_JOB)
    assert spec_of(worker)["template"]["spec"]["containers"][0]["image"] == "mine:2"


def test_workers_that_were_deleted_are_the_job_controllers_to_replace():
    """They exit with 143, which no index is complete by."""
    world = new_world()
    world.settle()
    before = uid_of(world.all(WORKER_JOB)[0])
    for pod in world.all(POD):
        if name_of(pod).startswith("job-rollouts"):
            world.delete("Pod", name_of(pod))
    world.all(WORKER_JOB)[0]["status"] = {"failed": 2, "active": 0}

    world.operate()
    assert conditions(world.get(ROLLOUT_POOL, "job-rollouts")) == {"Ready": "False"}
    world.turn()
    world.operate()

    (after,) = world.all(WORKER_JOB)
    assert uid_of(after) == before
    assert conditions(world.get(ROLLOUT_POOL, "job-rollouts")) == {"Ready": "True"}


def test_an_ended_worker_job_of_an_earlier_pool_of_the_same_name_makes_room():
    world = new_world()
    world.settle()
    earlier = world.all(WORKER_JOB)[0]
    complete_worker(world, 0)
    earlier["metadata"]["ownerReferences"][0]["uid"] = "uid-of-an-earlier-pool"
    earlier["metadata"]["creationTimestamp"] = stamp(world.now)

    world.settle()

    (after,) = world.all(WORKER_JOB)
    assert uid_of(after) != uid_of(earlier)


def test_what_a_stale_view_would_forget_is_kept():
    world = new_world()
    world.settle()
    stale = copy.deepcopy(world)
    fail_trainer(world, 0)
    world.operate()
    toggle_suspend(stale, 1)

    world.operate(seen=stale)
    world.settle()

    assert status_of(world.get(TRAINING_JOB, "job"))["attempt"] == 2


def test_a_scaled_pool_stays_as_it_was_scaled():
    world = new_world()
    world.settle()

    scale_pool(world, 3)
    world.settle()

    assert spec_of(world.all(WORKER_JOB)[0])["parallelism"] == 3


@pytest.mark.parametrize(
    ("asked", "reason", "message"),
    [
        (4, "AllReady", "All workers are ready."),
        (6, "AtMaxReplicas", "All workers are ready; spec.replicas asks for 6, and maxReplicas is 4."),
        (0, "AtMinReplicas", "All workers are ready; spec.replicas asks for 0, and minReplicas is 1."),
    ],
)
def test_a_pool_scaled_out_of_its_bounds_says_what_was_asked_and_what_bounds_it(asked, reason, message):
    world = new_world()
    world.settle()

    scale_pool(world, asked)
    world.settle()

    pool = world.get(ROLLOUT_POOL, "job-rollouts")
    (ready,) = status_of(pool)["conditions"]
    assert (ready["status"], ready["reason"], ready["message"]) == ("True", reason, message)


def test_a_worker_that_says_the_job_can_not_work_fails_it_in_its_own_words():
    world = new_world()
    world.settle()
    for pod in world.all(POD):
        if name_of(pod).startswith("job-rollouts"):
            seen = pod["status"]["containerStatuses"][0]
            seen["state"] = {
                "terminated": {"exitCode": 10, "message": "unknown environment X-v0: write another id"}
            }

    world.operate()

    failed = next(c for c in status_of(world.get(TRAINING_JOB, "job"))["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "ConfigurationError"
    assert failed["message"] == "unknown environment X-v0: write another id"


@pytest.mark.parametrize("component", ["job-trainer", "job-rollouts"])
def test_how_pods_of_an_earlier_job_of_the_same_name_ended_is_not_held_against_this_one(component):
    """Garbage collection takes its time, and a user who corrects a mistake does not wait for it."""
    world = new_world()
    world.settle()
    earlier = [pod for pod in world.all(POD) if name_of(pod).startswith(component)]
    for pod in earlier:
        pod["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 10, "message": "no"}}
    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    world.delete("RLTrainingJob", "job")
    world.put({"kind": "RLTrainingJob", "metadata": {"name": "job"}, "spec": spec_of(job)})
    world.objects |= {("Pod", name_of(pod)): pod for pod in earlier}

    world.operate()

    assert conditions(world.get(TRAINING_JOB, "job")).get("Failed") is None
    assert status_of(world.get(TRAINING_JOB, "job"))["attempt"] == 1


def test_workers_of_an_earlier_job_of_the_same_name_are_not_counted_in_the_pool_of_this_one():
    world = new_world()
    world.settle()
    earlier = [pod for pod in world.all(POD) if name_of(pod).startswith("job-rollouts")]
    for pod in earlier:
        seen = pod["status"]["containerStatuses"][0]
        seen |= {"restartCount": 5, "state": {"terminated": {"exitCode": 10, "message": "no"}}}
    spec = spec_of(world.get(TRAINING_JOB, "job"))
    world.delete("RLTrainingJob", "job")
    world.put({"kind": "RLTrainingJob", "metadata": {"name": "job"}, "spec": spec})
    world.objects |= {("Pod", f"earlier-{name_of(pod)}"): pod for pod in earlier}

    world.settle()

    pool = world.get(ROLLOUT_POOL, "job-rollouts")
    assert conditions(pool) == {"Ready": "True"}
    assert [status_of(pool)[field] for field in ("replicas", "ready", "restarts")] == [2, 2, 0]


def test_evicted_pods_that_nobody_removes_are_judged_once_however_many_they_are():
    world = new_world()
    world.settle()
    (trainer,) = [pod for pod in world.all(POD) if name_of(pod).startswith("job-trainer")]
    for number in range(40):
        metadata = {"name": f"evicted-{number}", "labels": labels_of(trainer),
                    "creationTimestamp": f"2026-01-01T00:{number:02}:00Z"}  # fmt: skip
        world.put({"kind": "Pod", "metadata": metadata, "spec": {},
                   "status": {"phase": "Failed", "reason": "Evicted"}})  # fmt: skip
        world.operate()
    told = world.events.count("TrainerFailed")

    before = world.writes
    world.operate()
    world.operate()

    assert world.writes == before
    assert told == 40


def test_a_job_that_is_to_go_at_once_when_it_has_ended_says_first_how_it_ended():
    world = new_world(ttlSecondsAfterFinished=0)
    world.settle()
    world.trainer_finished = True
    world.operate()

    assert conditions(world.get(TRAINING_JOB, "job")) == {"Succeeded": "True", "Progressing": "False"}
    assert world.events.count("Succeeded") == 1

    world.operate()

    assert world.get(TRAINING_JOB, "job") is None


def test_a_trainer_whose_gpu_node_is_gone_for_good_goes_on_without_it():
    world = new_world(trainer={"gpu": {"count": 1, "fallback": "CPU"}})
    world.devices = {"nvidia.com/gpu": 1}
    world.settle()
    assert status_of(world.get(TRAINING_JOB, "job"))["device"] == "GPU"
    (pod,) = [pod for pod in world.all(POD) if name_of(pod).startswith("job-trainer")]
    pod["spec"] = {**pod["spec"], "nodeName": "gpu-node"}

    world.devices = {}
    world.operate()
    assert status_of(world.get(TRAINING_JOB, "job"))["device"] == "GPU", "its plugin may only be restarting"

    world.delete("Pod", name_of(pod))
    world.settle()
    assert status_of(world.get(TRAINING_JOB, "job"))["device"] == "CPU"
    assert world.events.count("FallbackCPU") == 1
