"""The learner's loop: what it asks for, what it makes of the answers, what it survives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fragments import header, rollout
from learning import PATIENCE_SECONDS, STEPS, Trainer, start, store, updates
from ratchet_trainer.algorithms.errors import Diverged
from ratchet_trainer.resume import Resumed
from s3server import HeldStore

from ratchet.experience import Fragment, encode
from ratchet.weights import decode

__all__ = ["start", "store"]


def test_every_update_uses_a_batch_and_asks_for_the_next(start: Callable[..., Trainer]):
    trainer = start(fragmentsPerBatch=2)
    for update in (1, 2, 3):
        for _ in range(2):
            trainer.answer(trainer.take())
        progress = trainer.until(updates(update)).progress
        assert (progress.steps, progress.policy_version) == (2 * STEPS * update, update)
        assert progress.policy_lag == 0.0


def test_a_late_twin_too_many_does_not_stop_training(start: Callable[..., Trainer]):
    """It is left over after the update, too old for the next: it must not take the place of a ticket."""
    trainer = start(fragmentsPerBatch=2, evaluation={"everySteps": 2 * STEPS, "episodes": 2})
    first, second = trainer.take(), trainer.take()
    with trainer.redis.pipeline(transaction=True) as pipeline:
        for number, ticket in enumerate((first, second, first)):
            fields: Any = encode(rollout(incarnation=f"worker {number}", version=0, ticket=ticket.id))
            pipeline.xadd(f"{trainer.config.key_prefix}out:{trainer.epoch}", fields)
        pipeline.execute()
    tickets = [trainer.take() for _ in range(3)]
    assert [ticket.kind for ticket in tickets] == ["evaluate", "evaluate", "rollout"]

    # No update comes before the evaluation is complete.
    for ticket in reversed(tickets):
        trainer.answer(ticket)
    trainer.answer(trainer.take())

    assert trainer.until(updates(2)).progress.fragments_dropped == 1


@pytest.mark.parametrize("answered", [0, 1], ids=["the first", "its replacement"])
def test_an_evaluation_slower_than_its_deadline_is_taken_by_any_of_its_tickets(
    start: Callable[..., Trainer], answered: int
):
    trainer = start(stop={"maxSteps": STEPS})
    trainer.answer(trainer.take())
    slow = trainer.take()
    assert slow.kind == "evaluate"

    trainer.ahead += 61
    again = trainer.take()
    assert (again.kind, again.seed) == ("evaluate", slow.seed)
    assert again.id != slow.id
    trainer.answer((slow, again)[answered])

    status = trainer.until(lambda status: status.state == "Finished")
    assert status.evaluation.latest is not None
    assert status.evaluation.latest.episodes == 2


def test_redis_lost_again_while_it_is_written_anew_is_no_failure(
    start: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    trainer = start()
    trainer.answer(trainer.take())
    trainer.until(updates(1))
    begin, losses = trainer.channel.begin, [1, 1]

    def begin_and_lose(floor: int) -> int:
        trainer.epoch = begin(floor)
        if losses.pop():
            trainer.redis.flushall()
        return trainer.epoch

    monkeypatch.setattr(trainer.channel, "begin", begin_and_lose)
    losses.insert(0, 0)
    trainer.redis.flushall()
    trainer.until(lambda status: status.epoch == 4)

    trainer.answer(trainer.take())
    trainer.until(updates(2))


def test_an_evaluation_that_is_lost_with_redis_is_asked_for_again(start: Callable[..., Trainer]):
    trainer = start(evaluation={"everySteps": STEPS, "episodes": 1})
    trainer.answer(trainer.take())
    lost = trainer.take()
    assert lost.kind == "evaluate"
    trainer.redis.flushall()
    trainer.epoch = trainer.until(lambda status: status.epoch == lost.epoch + 1).epoch

    again = trainer.take()
    assert (again.kind, again.seed) == ("evaluate", lost.seed)
    trainer.answer(again)

    assert trainer.until(lambda status: status.evaluation.latest).progress.updates == 1


def test_an_evaluation_that_is_lost_with_its_learner_is_asked_for_by_the_next(
    start: Callable[..., Trainer], store: HeldStore
):
    arguments = {"evaluation": {"everySteps": STEPS, "episodes": 1}}
    first = start(**arguments)
    first.answer(first.take())
    assert first.take().kind == "evaluate"
    first.end()
    loaded = store.newest()
    assert loaded is not None

    second = start(resumed=Resumed.read(loaded), **arguments)

    assert second.take().kind == "evaluate"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_evaluation_that_is_not_finite_is_divergence_and_never_in_a_status(
    start: Callable[..., Trainer], value: float
):
    trainer = start(evaluation={"everySteps": STEPS, "episodes": 1})
    trainer.answer(trainer.take())
    ticket = trainer.take()
    columns = {"episode_return": np.array([value], np.float32), "episode_length": np.array([1], np.int32)}
    trainer.deliver(
        Fragment(header(kind="evaluation", n=0, sequence=2, version=1, ticket=ticket.id), columns)
    )
    trainer.thread.join(PATIENCE_SECONDS)

    assert [type(failure) for failure in trainer.failure] == [Diverged]
    assert trainer.status.evaluation.latest is None


def test_a_resumed_learner_goes_on_exactly(start: Callable[..., Trainer], store: HeldStore):
    """One that was ended and resumed publishes the weights of one that was not."""
    straight = start()
    for update in (1, 2, 3):
        straight.answer(straight.take())
        straight.until(updates(update))
    expected = straight.worker.weights(None)
    straight.end()

    first = start()
    first.answer(first.take())
    first.until(updates(1))
    first.end()
    loaded = store.newest()
    assert loaded is not None
    resumed = start(resumed=Resumed.read(loaded))
    resumed.sequence = first.sequence
    for update in (2, 3):
        resumed.answer(resumed.take())
        progress = resumed.until(updates(update)).progress
        assert progress.steps == STEPS * update

    found = resumed.worker.weights(None)
    assert found is not None
    assert expected is not None
    weights, wanted = decode(found.blob), decode(expected.blob)
    assert found.version == expected.version
    assert {name: value.tobytes() for name, value in weights.items()} == {
        name: value.tobytes() for name, value in wanted.items()
    }


def test_trackers_get_each_update_once(start: Callable[..., Trainer]):
    trainer = start()
    trainer.answer(trainer.take())
    shown = trainer.until(updates(1))
    trainer.ahead += 1
    trainer.until(lambda status: status is not shown)
    trainer.answer(trainer.take())
    trainer.until(updates(2))
    rows = [steps for steps, _ in trainer.tracked.rows]
    assert rows == [0, STEPS, 2 * STEPS]
