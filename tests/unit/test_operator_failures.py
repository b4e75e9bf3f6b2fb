"""How a job fails, ends and goes: failures judged once, attempts numbered, by the clock that is passed in."""

from datetime import timedelta

import pytest
from ratchet_operator.kinds import DEPLOYMENT, TRAINING_JOB, Json, labels_of, name_of, spec_of, status_of
from world import World, condition, conditions, end_container, new_world


def fail_trainer(world: World, code: int) -> None:
    for pod in world.pods_of("job-trainer"):
        end_container(pod, code, "words\nlast words")


def test_each_failure_counts_once_and_numbers_the_next_attempt():
    world = new_world(failurePolicy={"backoffLimit": 2})
    world.settle()
    for counted in (1, 2):
        fail_trainer(world, 1)
        world.operate()
        world.operate()
        world.settle()
        status = status_of(world.get(TRAINING_JOB, "job"))
        assert (status["failuresCounted"], status["attempt"]) == (counted, counted + 1)

    fail_trainer(world, 1)
    world.settle()

    failed = condition(world.get(TRAINING_JOB, "job"), "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "last words" in failed["message"]
    assert world.all(DEPLOYMENT) == []


def test_a_job_deleted_by_its_ttl_goes_when_the_clock_says_so_and_not_before():
    world = new_world(ttlSecondsAfterFinished=3600)
    world.settle()
    world.trainer_finished = True
    world.operate()
    ended = world.now

    world.now = ended + timedelta(seconds=3599)
    world.operate()
    assert world.get(TRAINING_JOB, "job") is not None
    assert world.waits == [1.0]
    world.now = ended + timedelta(seconds=3600)
    world.operate()

    assert world.objects == {}


def disrupt(pod: Json, by: str) -> None:
    """As the scheduler, the eviction API or the taint manager takes a pod away."""
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": by}]


def evict(pod: Json) -> None:
    """As the kubelet of a node under pressure does."""
    pod["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}


def lose(pod: Json, how: int | str) -> None:
    match how:
        case "Evicted":
            evict(pod)
        case "OOMKilled":
            end_container(pod, 137, reason="OOMKilled")
        case str():
            disrupt(pod, how)
        case code:
            end_container(pod, code, "last words")


COUNT, IGNORE = ("Count", 1, 2, None), ("Ignore", 0, 1, None)


@pytest.mark.parametrize(
    ("rules", "how", "means"),
    [
        ([], 1, COUNT),
        ([], 11, COUNT),
        ([], 13, COUNT),
        ([], 143, COUNT),
        ([], "OOMKilled", COUNT),
        ([], 14, IGNORE),
        ([], "Evicted", IGNORE),
        ([], "EvictionByEvictionAPI", IGNORE),
        ([], "PreemptionByScheduler", IGNORE),
        ([], "DeletionByTaintManager", IGNORE),
        ([], 10, ("FailJob", 0, 1, "ConfigurationError")),
        ([], 12, ("FailJob", 0, 1, "Diverged")),
        ([], 15, ("FailJob", 0, 1, "CheckpointsUnreadable")),
        ([{"action": "Ignore", "onExitCodes": {"values": [1, 137]}}], 1, IGNORE),
        ([{"action": "Count", "onExitCodes": {"values": [12]}}], 12, COUNT),
        ([{"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [13]}}], 1,
         ("FailJob", 0, 1, "Error")),
        ([{"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [13]}}], 13, COUNT),
        ([{"action": "FailJob", "onReasons": ["OOMKilled"]}], "OOMKilled", ("FailJob", 0, 1, "OOMKilled")),
        ([{"action": "Count", "onReasons": ["Evicted"]}], "Evicted", COUNT),
        ([{"action": "Count", "onReasons": ["Evicted"]}], "EvictionByEvictionAPI", COUNT),
        ([{"action": "Count", "onReasons": ["Preempted"]}], "PreemptionByScheduler", COUNT),
        ([{"action": "FailJob", "onReasons": ["NodeLost"]}], "DeletionByPodGC",
         ("FailJob", 0, 1, "NodeLost")),
        ([{"action": "Ignore", "onReasons": ["Error"]}, {"action": "Count", "onExitCodes": {"values": [1]}}],
         1, IGNORE),
    ],
)  # fmt: skip
def test_each_rule_decides_what_an_end_of_the_trainer_means(rules, how, means):
    world = new_world(failurePolicy={"backoffLimit": 3, "rules": rules})
    world.settle()
    (pod,) = world.pods_of("job-trainer")

    lose(pod, how)
    world.operate()
    world.operate()

    job = world.get(TRAINING_JOB, "job")
    (failure,) = status_of(job)["failures"]
    action, counted, attempt, failed = means
    found = (failure["action"], status_of(job)["failuresCounted"], status_of(job)["attempt"])
    assert found == (action, counted, attempt)
    assert condition(job, "Failed").get("reason") == failed
    assert world.events.count("TrainerFailed") == 1


def test_an_ignored_failure_is_recorded_once_and_starts_no_attempt():
    world = new_world()
    world.settle()

    fail_trainer(world, 14)
    world.settle()

    status = status_of(world.get(TRAINING_JOB, "job"))
    assert [failure["action"] for failure in status["failures"]] == ["Ignore"]
    assert status["attempt"] == 1


def test_a_worker_that_says_the_job_can_not_work_fails_it_in_its_own_words():
    world = new_world()
    world.settle()
    for pod in world.pods_of("job-rollouts"):
        seen = pod["status"]["containerStatuses"][0]
        seen["state"] = {
            "terminated": {"exitCode": 10, "message": "unknown environment X-v0: write another id"}
        }

    world.operate()

    failed = condition(world.get(TRAINING_JOB, "job"), "Failed")
    assert failed["reason"] == "ConfigurationError"
    assert failed["message"] == "unknown environment X-v0: write another id"


@pytest.mark.parametrize("component", ["job-trainer", "job-rollouts"])
def test_how_pods_of_an_earlier_job_of_the_same_name_ended_is_not_held_against_this_one(component):
    """Garbage collection takes its time, and a user who corrects a mistake does not wait for it."""
    world = new_world()
    world.settle()
    earlier = world.pods_of(component)
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


def test_evicted_pods_that_nobody_removes_are_judged_once_however_many_they_are():
    world = new_world()
    world.settle()
    (trainer,) = world.pods_of("job-trainer")
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
    (pod,) = world.pods_of("job-trainer")
    pod["spec"] = {**pod["spec"], "nodeName": "gpu-node"}

    world.devices = {}
    world.operate()
    assert status_of(world.get(TRAINING_JOB, "job"))["device"] == "GPU", "its plugin may only be restarting"

    world.delete("Pod", name_of(pod))
    world.settle()
    assert status_of(world.get(TRAINING_JOB, "job"))["device"] == "CPU"
    assert world.events.count("FallbackCPU") == 1


@pytest.mark.parametrize("going", [False, True], ids=["restarted", "on its way out"])
def test_a_finished_trainer_that_can_not_be_asked_ends_the_job_by_its_last_word(going):
    world = new_world()
    world.settle()
    world.steps, world.trainer_finished, world.trainer_answers = 640, True, False
    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    (pod,) = world.pods_of("job-trainer")
    end_container(pod, 0, world.trainer_status(job).model_dump_json(by_alias=True, exclude_none=True))
    if going:
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    world.operate()
    world.operate()

    job = world.get(TRAINING_JOB, "job")
    assert condition(job, "Succeeded")["reason"] == "MaxStepsReached"
    assert status_of(job)["progress"]["steps"] == 640


@pytest.mark.parametrize(
    "word", ["", "{}", "ends as asked", '{"uid": "another", "attempt": 1, "epoch": 1, "state": "Finished"}']
)
def test_a_trainer_that_ended_with_0_and_left_no_result_of_this_job_goes_on(word):
    world = new_world()
    world.settle()
    (pod,) = world.pods_of("job-trainer")

    end_container(pod, 0, word)
    world.settle()

    assert conditions(world.get(TRAINING_JOB, "job"))["Progressing"] == "True"
    assert status_of(world.get(TRAINING_JOB, "job"))["failuresCounted"] == 0


def test_what_a_trainer_stored_after_it_was_asked_last_and_before_it_diverged_is_in_the_status():
    world = new_world()
    world.steps = 320
    world.settle()
    asked = world.get(TRAINING_JOB, "job")
    assert asked is not None
    world.steps = 640
    last = world.trainer_status(asked).model_dump_json(by_alias=True, exclude_none=True)
    world.steps = 320
    (pod,) = world.pods_of("job-trainer")

    end_container(pod, 12, f"{last}\nthe reward is not finite", reason="Error")
    world.operate()
    world.operate()

    job = world.get(TRAINING_JOB, "job")
    failed = condition(job, "Failed")
    assert (failed["reason"], failed["message"]) == ("Diverged", "the reward is not finite")
    assert status_of(job)["progress"]["steps"] == 640


def test_a_trainer_that_passed_over_a_broken_checkpoint_is_told_of_once():
    world = new_world()
    world.passed_over = ["000000000640-1-2 has a damaged state (7 of 9 bytes)"]

    world.settle()
    wipe_status(world)
    world.settle()

    assert world.events.count("CheckpointPassedOver") == 1


# maxDuration is 10 minutes; a trainer gets two more to store what it has.
DURATION, GRACE = 600, 120


def wait_out(world: World, seconds: float) -> None:
    world.now += timedelta(seconds=seconds)
    world.operate()


def out_of_time_world() -> World:
    """A job that has waited for workers since its start, which is now."""
    world = new_world(stop={"maxDuration": "10m"})
    for _ in range(3):
        world.operate()
    world.trainer_answers = False
    return world


def test_a_job_whose_workers_never_come_is_ended_by_max_duration():
    world = out_of_time_world()
    assert max(world.waits) <= DURATION + GRACE, "it looks again by then, whatever else happens"

    wait_out(world, DURATION + GRACE - 1)
    assert "Failed" not in conditions(world.get(TRAINING_JOB, "job"))
    assert any(0 < wait <= 1 for wait in world.waits)
    wait_out(world, 1)

    failed = condition(world.get(TRAINING_JOB, "job"), "Failed")
    assert failed["reason"] == "MaxDurationReached"
    assert failed["message"].startswith("stop.maxDuration (10m) has passed, and there is no checkpoint. ")
    assert world.all(DEPLOYMENT) == []


def test_a_new_leader_ends_no_job_by_its_deadline_before_it_has_asked_the_trainer():
    world = new_world(stop={"maxDuration": "10m"})
    world.settle()
    world.steps, world.trainer_finished = 640, True
    world.trainer_answers = world.trainers_asked = False

    wait_out(world, 2 * (DURATION + GRACE))
    assert not {"Succeeded", "Failed"} & conditions(world.get(TRAINING_JOB, "job")).keys()
    assert min(world.waits) > 0, "it looks again, and not at once"

    world.trainer_answers = world.trainers_asked = True
    world.operate()
    assert condition(world.get(TRAINING_JOB, "job"), "Succeeded")["reason"] == "MaxStepsReached"


def test_suspended_time_does_not_count_for_max_duration():
    world = out_of_time_world()
    wait_out(world, 300)
    suspend(world, True)
    world.operate()
    wait_out(world, 10 * DURATION)
    assert conditions(world.get(TRAINING_JOB, "job"))["Suspended"] == "True"
    suspend(world, False)
    world.operate()

    wait_out(world, DURATION + GRACE - 301)
    assert "Failed" not in conditions(world.get(TRAINING_JOB, "job"))
    wait_out(world, 1)
    assert condition(world.get(TRAINING_JOB, "job"), "Failed")["reason"] == "MaxDurationReached"


def test_the_trainer_is_told_from_when_time_counts_and_not_restarted_by_it():
    world = new_world()
    world.settle()
    first = active_since(world)
    assert first == "2026-01-01T00:00:10Z"
    world.delete("ConfigMap", "job-config")
    world.settle()
    assert active_since(world) == first

    suspend(world, True)
    world.operate()
    wait_out(world, 3600)
    assert active_since(world) == first
    suspend(world, False)
    world.operate()
    moved = active_since(world)
    assert moved > first
    world.delete("ConfigMap", "job-config")
    world.settle()

    assert active_since(world) == moved


def test_a_job_out_of_time_with_a_checkpoint_has_succeeded():
    world = out_of_time_world()
    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    latest = {"name": "a", "uri": "s3://b/a", "digest": "sha256:0", "steps": 640, "policyVersion": 2,
              "time": "2026-01-01T00:00:00Z"}  # fmt: skip
    job["status"] |= {"checkpoints": {"latest": latest}}

    wait_out(world, DURATION + GRACE)

    succeeded = condition(world.get(TRAINING_JOB, "job"), "Succeeded")
    assert succeeded["reason"] == "MaxDurationReached"
    assert "the newest checkpoint is at 640 steps" in succeeded["message"]


def wipe_status(world: World) -> None:
    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    job["status"] = {}


def suspend(world: World, suspended: bool) -> None:
    job = world.get(TRAINING_JOB, "job")
    assert job is not None
    world.put({**job, "spec": {**spec_of(job), "suspend": suspended}})


def active_since(world: World) -> str:
    trainer = world.get(DEPLOYMENT, "job-trainer")
    assert trainer is not None
    variables = spec_of(trainer)["template"]["spec"]["containers"][0]["env"]
    return next(found["value"] for found in variables if found["name"] == "RATCHET_ACTIVE_SINCE")
