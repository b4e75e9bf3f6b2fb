"""What a learner stores and when, and what it does while storage does not answer."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from learning import PATIENCE_SECONDS, STEPS, Trainer, start, store, updates
from ratchet_trainer.resume import Resumed
from ratchet_trainer.storing import LAST_WORDS_SECONDS, STORE_AGAIN_AT_MOST_SECONDS
from redisserver import RedisServer
from s3server import HeldStore
from safetensors.numpy import load as load_numpy

from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.checkpoints import StorageUnavailable
from ratchet.experience import Patience, RedisUnreachable
from ratchet.policies.artifact import describe
from ratchet.weights import decode

__all__ = ["start", "store"]


def test_finished_is_said_only_once_the_final_checkpoint_is_stored(
    start: Callable[..., Trainer], store: HeldStore
):
    store.goes_on.clear()
    trainer = start(stop={"maxSteps": STEPS})
    trainer.answer(trainer.take())
    trainer.answer(trainer.take())
    assert store.begun.wait(PATIENCE_SECONDS)
    assert trainer.status.state != "Finished"
    assert trainer.status.finished_reason is None

    store.goes_on.set()
    status = trainer.until(lambda status: status.state == "Finished")

    loaded = store.newest()
    assert loaded is not None
    assert loaded.stored.manifest.final
    assert status.checkpoints.latest is not None
    assert status.checkpoints.latest.digest == f"sha256:{loaded.stored.digest}"
    assert Resumed.read(loaded).finished == status.finished_reason == "MaxStepsReached"


def test_a_final_checkpoint_that_is_not_stored_is_complained_of_and_tried_again(
    start: Callable[..., Trainer], store: HeldStore
):
    store.failure = StorageUnavailable("bucket ratchet: no answer")
    trainer = start(stop={"maxSteps": STEPS})
    trainer.answer(trainer.take())
    trainer.answer(trainer.take())
    status = trainer.until(lambda status: "no answer" in status.message)
    assert (status.state, status.finished_reason) == ("Training", None)

    store.failure = None
    status = trainer.until(lambda status: status.state == "Finished")
    assert status.message == ""


def test_a_final_checkpoint_is_tried_again_after_pauses_that_grow_and_end_when_asked(
    start: Callable[..., Trainer], store: HeldStore
):
    store.failure = StorageUnavailable("bucket ratchet: no answer")
    trainer = start(stop={"maxSteps": STEPS})
    trainer.answer(trainer.take())
    trainer.answer(trainer.take())

    trainer.until(lambda _: len(trainer.stop.pauses) >= 5)
    assert trainer.stop.pauses[:5] == [1.0, 2.0, 4.0, 5.0, 5.0]

    trainer.end()
    assert trainer.failure == []
    assert trainer.status.finished_reason is None


def test_asked_to_end_it_waits_for_the_checkpoint_in_flight(start: Callable[..., Trainer], store: HeldStore):
    store.goes_on.clear()
    trainer = start(checkpoint={"s3": {"bucket": "ratchet"}, "interval": "1s"})
    trainer.answer(trainer.take())
    trainer.until(updates(1))
    trainer.ahead += 2
    assert store.begun.wait(PATIENCE_SECONDS)

    trainer.stop.set()
    assert trainer.thread.is_alive()
    store.goes_on.set()
    trainer.end()

    loaded = store.newest()
    assert loaded is not None
    assert loaded.stored.manifest.steps == STEPS


EVALUATED_AT_EACH_UPDATE = {"everySteps": STEPS, "episodes": 1}


def train_past_a_best_that_storage_holds_up(trainer: Trainer) -> dict[str, Any]:
    """One best is being stored, a second waits for it, a third update follows; the second's weights."""
    for _ in (1, 2):
        trainer.answer(trainer.take())
        evaluate = trainer.take()
        assert evaluate.kind == "evaluate"
        judged = trainer.worker.weights(None)
        trainer.answer(evaluate)
    trainer.answer(trainer.take())
    trainer.until(updates(3))
    assert judged is not None
    assert judged.version == 2
    return decode(judged.blob)


def test_training_goes_on_while_storage_does_not_answer_and_the_best_is_stored_as_it_was_judged(
    start: Callable[..., Trainer], store: HeldStore
):
    store.goes_on.clear()
    trainer = start(evaluation=EVALUATED_AT_EACH_UPDATE)
    judged = train_past_a_best_that_storage_holds_up(trainer)
    assert trainer.status.checkpoints.latest is None

    store.goes_on.set()
    status = trainer.until(lambda status: status.checkpoints.best and status.checkpoints.best.steps > STEPS)

    loaded = store.newest()
    assert loaded is not None
    assert status.evaluation.best is not None
    manifest = loaded.stored.manifest
    assert (manifest.version, manifest.steps) == (2, 2 * STEPS)
    assert manifest.mean_return == status.evaluation.best.mean_return
    policy = load_numpy(loaded.blobs["policy.safetensors"])
    assert {name: policy[name].tobytes() for name in judged} == {
        name: value.tobytes() for name, value in judged.items()
    }


def test_a_policy_is_stored_with_what_it_did_in_its_own_evaluation_and_with_no_other_ones(
    start: Callable[..., Trainer], store: HeldStore
):
    def stored() -> tuple[int, EvaluatedActions | None]:
        loaded = store.newest()
        assert loaded is not None
        return loaded.stored.manifest.version, describe(loaded.blobs["policy.json"]).evaluated

    trainer = start(evaluation={"everySteps": 2 * STEPS, "episodes": 1})
    for _ in range(3):
        trainer.answer(trainer.take())  # two rollouts, then an evaluation
    trainer.until(lambda status: status.checkpoints.best)
    version, evaluated = stored()
    assert version == 2
    assert evaluated is not None
    assert (evaluated.episodes, evaluated.deterministic, evaluated.counts) == (2, True, (3, 2))

    # A trainer that goes on from there stores the same policy again, and says the same of it.
    trainer.end()
    loaded = store.newest()
    assert loaded is not None
    again = start(resumed=Resumed.read(loaded), stop={"maxSteps": 2 * STEPS})
    again.until(lambda status: status.finished_reason)
    assert stored() == (2, evaluated)
    assert store.newest().stored.manifest.final  # type: ignore[union-attr]

    more = start(resumed=Resumed.read(loaded))
    more.answer(more.take(), incarnation="another")
    more.until(lambda status: status.progress.updates == 3)
    more.end()
    assert stored() == (3, None)


def test_asked_to_end_it_stores_the_best_that_waits_and_then_what_came_after(
    start: Callable[..., Trainer], store: HeldStore
):
    store.goes_on.clear()
    trainer = start(evaluation=EVALUATED_AT_EACH_UPDATE)
    train_past_a_best_that_storage_holds_up(trainer)

    trainer.stop.set()
    store.goes_on.set()
    trainer.end()

    assert trainer.failure == []
    assert [int(name.split("-")[-1]) for name in store.names()] == [1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [{"evaluation": EVALUATED_AT_EACH_UPDATE}, {"stop": {"maxSteps": STEPS}}],
    ids=["the best", "the final one"],
)
def test_asked_to_end_it_gives_up_a_checkpoint_that_storage_never_takes(
    start: Callable[..., Trainer],
    store: HeldStore,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
):
    store.goes_on.clear()
    trainer = start(**changes)
    trainer.answer(trainer.take())
    trainer.answer(trainer.take())
    assert store.begun.wait(PATIENCE_SECONDS)

    trainer.stop.set()
    end = time.monotonic() + PATIENCE_SECONDS
    while trainer.thread.is_alive():
        assert time.monotonic() < end, "still waits for storage"
        trainer.ahead += LAST_WORDS_SECONDS
        trainer.thread.join(0.05)

    assert trainer.failure == []
    assert trainer.status.finished_reason is None
    assert "was given up: storage does not answer" in caplog.text


def test_asked_to_end_while_redis_is_gone_it_stores_a_checkpoint(
    start: Callable[..., Trainer], store: HeldStore, redis_server: RedisServer
):
    trainer = start()
    trainer.answer(trainer.take())
    trainer.until(updates(1))
    redis_server.stop()

    trainer.end()

    assert trainer.failure == []
    loaded = store.newest()
    assert loaded is not None
    assert loaded.stored.manifest.steps == STEPS


def test_what_was_learned_since_the_last_checkpoint_is_kept_when_redis_stays_away(
    start: Callable[..., Trainer],
    store: HeldStore,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
):
    trainer = start()
    monkeypatch.setattr(trainer.channel, "_patience", Patience(total=0.1))
    trainer.answer(trainer.take())
    trainer.until(updates(1))
    redis_server.stop()
    trainer.thread.join(PATIENCE_SECONDS)

    assert [type(failure) for failure in trainer.failure] == [RedisUnreachable]
    loaded = store.newest()
    assert loaded is not None
    assert loaded.stored.manifest.steps == STEPS


def test_a_best_that_storage_did_not_take_is_stored_later_as_it_was_judged(
    start: Callable[..., Trainer], store: HeldStore
):
    store.failure = StorageUnavailable("bucket ratchet: no answer")
    trainer = start(evaluation=EVALUATED_AT_EACH_UPDATE)
    trainer.answer(trainer.take())
    evaluate = trainer.take()
    judged = trainer.worker.weights(None)
    trainer.answer(evaluate)
    trainer.until(lambda status: "no answer" in status.message)
    trainer.answer(trainer.take())
    trainer.until(updates(2))
    assert judged is not None

    store.failure = None
    trainer.ahead += STORE_AGAIN_AT_MOST_SECONDS
    status = trainer.until(lambda status: status.checkpoints.best)

    assert status.checkpoints.best is not None
    assert (status.checkpoints.best.steps, status.checkpoints.best.policy_version) == (STEPS, judged.version)
    assert store.names() == ["000000000006-1-1"]
