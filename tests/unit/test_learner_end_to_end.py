"""Trainer and workers as processes, a real Redis and a real S3 server, and what goes wrong between them.

The tests of one `running` job disturb it one after the other; each leaves it training.
"""

import signal
from collections.abc import Callable, Iterator

import pytest
from fragments import rollout
from processes import COPIES, PATIENCE_SECONDS, STEPS, Job, cartpole, make_job, pendulum, storage
from s3server import S3Server

from ratchet.api.v1alpha1 import TrainerStatus
from ratchet.experience import encode

__all__ = ["make_job"]


@pytest.fixture(scope="module")
def learned(make_job: Callable[..., Job], s3: S3Server) -> Iterator[Job]:
    """The example, trained until its trainer says that it has finished."""
    job = make_job(cartpole(s3))
    job.start_trainer()
    job.start_worker()
    job.until(lambda status: status.state == "Finished")
    yield job
    job.close()


def test_cartpole_is_learned(learned: Job):
    status = learned.status()
    assert status is not None
    assert status.finished_reason == "TargetReturnReached"
    latest = status.evaluation.latest
    assert latest is not None
    assert latest.mean_return >= 475
    assert latest.episodes == 100
    assert latest.policy_version == status.progress.policy_version


def test_who_says_finished_has_stored_the_policy_that_was_evaluated(learned: Job):
    status, stored = learned.status(), learned.newest()
    assert status is not None
    assert stored.manifest.final
    assert stored.manifest.version == status.progress.policy_version
    assert stored.manifest.mean_return == status.evaluation.latest.mean_return  # type: ignore[union-attr]
    assert status.checkpoints.latest is not None
    assert status.checkpoints.latest.digest == f"sha256:{stored.digest}"
    assert status.checkpoints.best == status.checkpoints.latest


def test_the_trainer_of_a_finished_job_says_so_at_once_and_trains_no_more(learned: Job):
    before = learned.status()
    assert before is not None
    assert learned.trainer.end() == 0

    learned.start_trainer()
    after = learned.until(lambda status: status.state == "Finished")

    assert after.finished_reason == before.finished_reason
    assert after.progress.steps == before.progress.steps
    assert after.evaluation == before.evaluation
    assert after.checkpoints == before.checkpoints
    assert after.epoch == before.epoch
    assert learned.trainer.end() == 0


@pytest.fixture(scope="module")
def running(make_job: Callable[..., Job], s3: S3Server) -> Iterator[Job]:
    """An endless job with one worker."""
    job = make_job(pendulum(s3))
    job.start_trainer()
    job.start_worker()
    yield job
    job.close()


def test_entries_that_are_no_fragments_of_this_job_are_counted_and_dropped(running: Job):
    before = running.until_it_goes_on()
    stream = running.key(f"out:{before.epoch}")
    with running.redis_server.client() as redis:
        redis.xadd(stream, {"h": "{", "b": "garbage"})
        # Whole, but of another environment.
        redis.xadd(stream, dict(encode(rollout(incarnation="another"))))  # type: ignore[arg-type]

    dropped = before.progress.fragments_dropped
    running.until(lambda status: status.progress.fragments_dropped == dropped + 2)
    running.until_it_goes_on()


def test_a_killed_trainer_goes_on_from_its_newest_checkpoint(running: Job):
    seen = running.until(
        lambda status: (
            status.checkpoints.latest is not None and status.progress.steps > status.checkpoints.latest.steps
        )
    )
    running.trainer.kill()
    newest = running.newest()

    running.start_trainer()
    first = running.until(lambda status: status.state != "Starting")
    resumed = running.until_it_goes_on()

    assert first.progress.steps >= newest.manifest.steps
    assert resumed.resumed_from == f"manifests/{newest.manifest.name}.json"
    assert resumed.epoch > seen.epoch
    assert resumed.progress.steps > newest.manifest.steps
    assert resumed.progress.policy_version > newest.manifest.version
    assert resumed.active_seconds > first.active_seconds > 0


def test_on_sigterm_the_trainer_stores_a_checkpoint_and_ends_well(running: Job):
    seen = running.until_it_goes_on()
    assert running.trainer.end() == 0

    newest = running.newest()
    assert newest.manifest.steps >= seen.progress.steps
    assert newest.manifest.epoch == seen.epoch

    running.start_trainer()
    resumed = running.until_it_goes_on()
    assert resumed.resumed_from == f"manifests/{newest.manifest.name}.json"


def test_redis_losing_everything_costs_no_count(running: Job):
    before = running.until_it_goes_on()
    with running.redis_server.client() as redis:
        redis.flushall()

    after = running.until(lambda status: status.epoch > before.epoch)
    assert after.progress.steps >= before.progress.steps
    running.until_it_goes_on()


def test_redis_killed_and_started_again_costs_no_count(running: Job):
    before = running.until_it_goes_on()
    running.redis_server.stop()
    running.redis_server.start()

    after = running.until(lambda status: status.epoch > before.epoch)
    assert after.progress.steps >= before.progress.steps
    running.until_it_goes_on()


def test_a_redis_without_room_holds_training_up_and_costs_no_count(running: Job):
    running.until_it_goes_on()
    with running.redis_server.client() as redis:

        def refused() -> int:
            return redis.info("errorstats").get("errorstat_OOM", {}).get("count", 0)

        before = refused()
        redis.config_set("maxmemory", 1)
        running.until(lambda _: refused() > before)
        redis.config_set("maxmemory", 0)

    status = running.until_it_goes_on()
    assert running.trainer.exit_code is None
    assert status.progress.steps == status.progress.fragments_accepted * COPIES * STEPS


def test_a_ticket_lost_with_its_worker_is_written_again(running: Job):
    running.until_it_goes_on()
    running.worker.kill()
    with running.redis_server.client() as redis:
        # Either the worker died with the only ticket, or it is taken here, by one that never answers.
        redis.blpop([running.key("tickets")], 1)

    running.start_worker()
    running.until_it_goes_on()


def test_of_two_trainers_the_older_ends_as_fenced(running: Job):
    before = running.until_it_goes_on()
    older = running.trainer

    running.start_trainer()
    after = running.until(lambda status: status.epoch > before.epoch)

    assert older.process.wait(PATIENCE_SECONDS) == 14
    assert "a newer trainer has begun" in older.last_words.read_text()
    assert after.progress.steps <= running.until_it_goes_on().progress.steps


def test_a_stopped_trainer_that_wakes_up_when_another_has_taken_over_writes_nothing_more(running: Job):
    """Its next update would be published, and its next checkpoint is long due."""
    seen, older = running.until_it_goes_on(), running.trainer

    def stored() -> dict[str, int]:
        return {name: int(name.split("-")[1]) for name in running.store().names()}

    older.process.send_signal(signal.SIGSTOP)
    try:
        running.start_trainer()
        while max(stored().values(), default=0) <= seen.epoch:
            running.until_it_goes_on()
        left = {name for name, epoch in stored().items() if epoch <= seen.epoch}
    finally:
        older.process.send_signal(signal.SIGCONT)

    assert older.process.wait(PATIENCE_SECONDS) == 14
    status = running.until_it_goes_on()
    assert {name for name, epoch in stored().items() if epoch <= seen.epoch} <= left, "the newer one may tidy"
    with running.redis_server.client() as redis:
        assert redis.hget(running.key("weights"), "epoch") == str(status.epoch).encode()
    assert status.progress.steps == status.progress.fragments_accepted * COPIES * STEPS


def test_a_stopped_trainer_that_wakes_up_before_the_newer_one_has_stored_anything_stores_nothing(
    make_job: Callable[..., Job], s3: S3Server
):
    """It finds no Redis to be fenced by, and is asked to end: what it learned since would be stored."""
    job = make_job(pendulum(s3, checkpoint={"s3": storage(s3), "interval": "1h"}))
    older = job.start_trainer()
    job.start_worker()
    seen = job.until_it_goes_on()
    older.process.send_signal(signal.SIGSTOP)
    try:
        newer = job.start_trainer()
        job.until(lambda status: status.epoch > seen.epoch and status.state != "Starting")
        job.redis_server.stop()
        assert job.store().names() == []
        older.process.send_signal(signal.SIGTERM)
    finally:
        older.process.send_signal(signal.SIGCONT)

    assert older.process.wait(PATIENCE_SECONDS) == 14
    assert "another trainer has claimed epoch" in older.last_words.read_text()
    assert job.store().names() == []

    job.redis_server.start()
    after = job.until_it_goes_on()
    assert newer.end() == 0
    assert job.newest().manifest.epoch >= after.epoch
    job.close()


def test_in_mode_bounded_async_two_workers_train_within_the_lag(make_job: Callable[..., Job], s3: S3Server):
    job = make_job(pendulum(s3, fragmentsPerBatch=2, maxPolicyLag=2, stop={"maxSteps": 20_000}))
    job.start_trainer()
    job.start_worker()
    job.start_worker()
    lags: list[float] = []

    def finished(status: TrainerStatus) -> bool:
        lags.append(status.progress.policy_lag or 0.0)
        return status.state == "Finished"

    status = job.until(finished)

    assert status.finished_reason == "MaxStepsReached"
    assert status.progress.steps >= 20_000
    assert status.pools["pool"].workers == 2
    assert 0 < max(lags) <= 2
    assert status.evaluation.latest is not None
    assert status.evaluation.latest.policy_version == status.progress.policy_version
    job.close()


def test_a_worker_that_knows_no_such_environment_ends_with_a_suggestion(
    make_job: Callable[..., Job], s3: S3Server
):
    job = make_job(pendulum(s3, environment={"id": "Pendulun-v1"}))
    worker = job.start_worker()
    assert worker.process.wait(PATIENCE_SECONDS) == 10
    assert "Pendulum" in worker.last_words.read_text()
