"""The reconcilers replayed over random histories of a small cluster: they always reach the wanted state, and
then write nothing.
"""

import contextlib
import copy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ROLLOUT_POOL,
    SERVICE,
    TRAINING_JOB,
    WORKER_SET,
    name_of,
    spec_of,
    status_of,
)
from world import JOB_SPEC, CrashError, World, conditions, end_container, new_world


def fail_trainer(world: World, choice: int) -> None:
    code = (1, 13, 137, 14)[choice % 4]
    for pod in world.pods_of("job-trainer"):
        end_container(pod, code, "words\nlast words")


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
    for workers in world.all(WORKER_SET):
        world.put({**workers, "spec": {**spec_of(workers), "replicas": 9}})


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


def end_worker(world: World, choice: int) -> None:
    for pod in world.pods_of("job-rollouts"):
        end_container(pod, (0, 1, 13, 137)[choice % 4])


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
    drift, wipe_status, forge_status, end_worker, progress, operate, turn, crash,
    operate_on_stale_view, operate, turn,
]  # fmt: skip
HISTORIES = st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 30)), max_size=25)


def variables(spec: Any) -> dict[str, str]:
    """Of the only container, by name."""
    (container,) = spec["template"]["spec"]["containers"]
    return {found["name"]: found["value"] for found in container["env"]}


def assert_wanted_state(world: World) -> None:
    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    suspended = spec_of(job).get("suspend", False)
    status = status_of(job)
    trainer, redis = world.get(DEPLOYMENT, "job-trainer"), world.get(DEPLOYMENT, "job-redis")
    assert trainer is not None
    assert redis is not None
    assert spec_of(trainer)["replicas"] == spec_of(redis)["replicas"] == (0 if suspended else 1)
    assert variables(spec_of(trainer))["RATCHET_ATTEMPT"] == str(status["attempt"])
    assert "evil:latest" not in str(world.objects)
    assert world.get(SERVICE, "job-redis")
    assert f"'maxSteps': {spec_of(job)['stop']['maxSteps']}" in str(spec_of(job))
    config = world.get(CONFIG_MAP, "job-config")
    assert config is not None
    assert f'"maxSteps":{spec_of(job)["stop"]["maxSteps"]}' in config["data"]["job.json"]
    pool = world.get(ROLLOUT_POOL, "job-rollouts")
    assert pool is not None
    workers = world.all(WORKER_SET)
    if suspended:
        assert workers == []
        assert conditions(job) == {"Suspended": "True", "Progressing": "False"}
    else:
        assert len(workers) == 1
        wanted = max(1, min(4, spec_of(pool)["replicas"]))
        assert spec_of(workers[0])["replicas"] == wanted
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


def test_a_service_that_only_an_earlier_release_wanted_goes_and_a_strangers_stays():
    world = new_world()
    world.settle()
    redis = world.get(SERVICE, "job-redis")
    assert redis is not None
    for name, owners in (("job-trainer", redis["metadata"]["ownerReferences"]), ("theirs", [])):
        world.put({**redis, "metadata": {"name": name, "ownerReferences": owners}})

    world.settle()

    assert {name_of(service) for service in world.all(SERVICE)} == {"job-redis", "theirs"}


def live_a_life(world: World) -> None:
    for _ in range(6):
        world.operate()
        world.turn()
    world.trainer_finished = True
    for _ in range(3):
        world.operate()
        world.turn()


@pytest.mark.parametrize("writes", range(20))
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
        kinds = {"ConfigMap", "Deployment", "Service", "RolloutPool", "ReplicaSet"}
        found = {f"{o['kind']}/{name_of(o)}": o for o in world.objects.values() if o["kind"] in kinds}
        specs = {name: copy.deepcopy(spec_of(o) or o.get("data")) for name, o in found.items()}
        # Told by the clock, not by the spec: a suspension moves it on.
        (container,) = specs["Deployment/job-trainer"]["template"]["spec"]["containers"]
        container["env"] = [found for found in container["env"] if found["name"] != "RATCHET_ACTIVE_SINCE"]
        return specs

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
