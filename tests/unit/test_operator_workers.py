"""A pool and its workers: as many as wanted, replaced when lost, and a reason where they are not ready."""

from datetime import timedelta

import pytest
from ratchet_operator.kinds import ROLLOUT_POOL, TRAINING_JOB, WORKER_SET, name_of, spec_of, status_of, uid_of
from ratchet_operator.reconcile.pool import PoolSeen, reconcile_pool
from ratchet_operator.settings import Installation
from world import World, condition, conditions, end_container, new_world


def scale_pool(world: World, replicas: int) -> None:
    pool = world.get(ROLLOUT_POOL, "job-rollouts")
    assert pool is not None
    world.put({**pool, "spec": {**spec_of(pool), "replicas": replicas}})


def crash_workers(world: World, code: int) -> None:
    """Their process ends, and the kubelet waits before it starts it again."""
    for pod in world.pods_of("job-rollouts"):
        end_container(pod, code)
        pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
        pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]


def test_lost_workers_are_replaced_in_the_same_set():
    world = new_world()
    world.settle()
    before = uid_of(world.all(WORKER_SET)[0])
    for pod in world.pods_of("job-rollouts"):
        world.delete("Pod", name_of(pod))

    world.operate()
    assert conditions(world.get(ROLLOUT_POOL, "job-rollouts")) == {"Ready": "False"}
    world.turn()
    world.operate()

    (after,) = world.all(WORKER_SET)
    assert uid_of(after) == before
    assert conditions(world.get(ROLLOUT_POOL, "job-rollouts")) == {"Ready": "True"}


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (0, "WorkerExitedEarly", "image ratchet-rollout:dev exited with 0"),
        (1, "CrashLoopBackOff", "exit code 1"),
        (13, "CrashLoopBackOff", "exit code 13"),
    ],
)
def test_pool_and_job_say_alike_why_workers_are_not_ready(code, reason, words):
    world = new_world()
    world.settle()

    crash_workers(world, code)
    for _ in range(2):  # why an answer is what it was may wait its turn
        world.operate()
        world.now += timedelta(seconds=10)

    said = condition(world.get(ROLLOUT_POOL, "job-rollouts"), "Ready")
    assert (said["status"], said["reason"]) == ("False", reason)
    assert words in said["message"]
    carried = condition(world.get(TRAINING_JOB, "job"), "RolloutsReady")
    assert {key: carried[key] for key in ("status", "reason", "message")} == {
        key: said[key] for key in ("status", "reason", "message")
    }


def test_a_worker_that_works_again_after_it_exited_with_0_is_ready():
    world = new_world()
    world.settle()

    for pod in world.pods_of("job-rollouts"):
        end_container(pod, 0)
    world.settle()

    assert conditions(world.get(ROLLOUT_POOL, "job-rollouts")) == {"Ready": "True"}


def test_another_image_is_another_set_and_the_old_one_goes_once_it_is_there():
    world = new_world()
    world.settle()
    old = world.all(WORKER_SET)[0]
    job = world.get(TRAINING_JOB, "job")
    assert job is not None

    world.put({**job, "spec": {**spec_of(job), "environment": {"id": "CartPole-v1", "image": "mine:2"}}})
    seen = [{uid_of(found) for found in world.all(WORKER_SET)}]
    for _ in range(3):
        world.operate()
        seen.append({uid_of(found) for found in world.all(WORKER_SET)})

    assert all(seen), "there are workers at any time"
    (new,) = world.all(WORKER_SET)
    assert uid_of(new) != uid_of(old)
    assert spec_of(new)["template"]["spec"]["containers"][0]["image"] == "mine:2"


def test_a_set_of_an_earlier_pool_of_the_same_name_makes_room():
    world = new_world()
    world.settle()
    earlier = world.all(WORKER_SET)[0]
    earlier["metadata"]["ownerReferences"][0]["uid"] = "uid-of-an-earlier-pool"

    world.settle()

    (after,) = world.all(WORKER_SET)
    assert uid_of(after) != uid_of(earlier)


def test_a_scaled_pool_stays_as_it_was_scaled():
    world = new_world()
    world.settle()

    scale_pool(world, 3)
    world.settle()

    assert spec_of(world.all(WORKER_SET)[0])["replicas"] == 3


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


def test_workers_of_an_earlier_job_of_the_same_name_are_not_counted_in_the_pool_of_this_one():
    world = new_world()
    world.settle()
    earlier = world.pods_of("job-rollouts")
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


def test_a_jobs_own_pool_goes_with_the_job_without_a_write_and_anybodys_other_says_what_it_lacks():
    world = new_world()
    world.settle()
    pool = world.get(ROLLOUT_POOL, "job-rollouts")
    assert pool is not None
    workers = {name_of(obj): obj for obj in world.all(WORKER_SET)}
    alone = PoolSeen(Installation(), job=None, worker_sets=workers)

    assert reconcile_pool(pool, alone, world.now).writes == 0

    orphan = {**pool, "metadata": {**pool["metadata"], "ownerReferences": []}}
    plan = reconcile_pool(orphan, alone, world.now)
    assert [delete.name for delete in plan.delete] == list(workers)
    assert plan.status is not None
    assert plan.status["conditions"][0]["reason"] == "JobNotFound"
