"""The learner's loop in a thread, with a real Redis and a real S3 server; the test plays the workers."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fragments import evaluation, header, rollout
from ratchet_trainer.algorithms.errors import Diverged
from ratchet_trainer.board import Board
from ratchet_trainer.interruption import pause
from ratchet_trainer.learner import LAST_WORDS_SECONDS, Learner, Parts
from ratchet_trainer.metrics import Metrics
from ratchet_trainer.resume import Resumed
from ratchet_trainer.saving import Saver
from ratchet_trainer.settings import Settings
from redis import Redis
from redisserver import RedisServer
from s3server import HeldStore, S3Server
from safetensors.numpy import load as load_numpy

from ratchet.api.v1alpha1 import TrainerStatus, TrainingConfig
from ratchet.checkpoints import Lineage, StorageUnavailable
from ratchet.experience import (
    Fragment,
    LearnerChannel,
    Patience,
    RedisUnreachable,
    Ticket,
    WorkerChannel,
    encode,
)
from ratchet.policies import EnvironmentSpec, SpaceSpec
from ratchet.weights import decode

# Those of `fragments.rollout`.
SPACES = EnvironmentSpec(
    observation=SpaceSpec(kind="Box", shape=(4,), low=-1.0, high=1.0),
    action=SpaceSpec(kind="Discrete", dtype="int64", n=2),
)
TIME, STEPS = 3, 6
PATIENCE_SECONDS = 60


class Tracked:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, figures: dict[str, float], steps: int) -> None:
        self.rows.append((steps, figures))


class Stop(threading.Event):
    """Remembers for how long it was waited for, and lets nobody wait for long."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        return super().wait(0.01)


class Trainer:
    """A learner in a thread, on a clock that the test sets forward, and one worker."""

    def __init__(
        self, server: RedisServer, store: HeldStore, resumed: Resumed | None = None, **changes: Any
    ) -> None:
        self.config = TrainingConfig.model_validate(
            {
                "namespace": "default",
                "name": "cartpole",
                "uid": "1f2e",
                "environment": {"id": "CartPole-v1", "vectorSize": 2},
                "algorithm": {
                    "ppo": {"rolloutSteps": TIME, "minibatchSize": STEPS, "epochs": 1},
                    "network": {"hidden": [4]},
                },
                "evaluation": {"everySteps": 10**9, "episodes": 2},
                "stop": {"maxSteps": 10**9},
                "checkpoint": {"s3": {"bucket": "ratchet"}, "interval": "1h"},
                "fragmentsPerBatch": 1,
                **changes,
            }
        )
        self.ahead = 0.0
        self.stop = Stop()
        self.channel = LearnerChannel(
            server.client(), self.config.key_prefix, Patience(sleep=lambda seconds: pause(self.stop, seconds))
        )
        self.epoch = self.channel.begin(0)
        self.board = Board(TrainerStatus(uid="1f2e", attempt=1, epoch=self.epoch, state="Starting"))
        self.tracked = Tracked()
        lineage = Lineage(namespace="default", job="cartpole", uid="1f2e", attempt=1)
        parts = Parts(
            Settings(self.config, 1, "CPU", 0, None, ""),
            self.channel,
            Saver(store, self.config.checkpoint, lineage, dict),
            self.board,
            Metrics("default", "cartpole"),
            [self.tracked],
            self.stop,
            lambda: time.monotonic() + self.ahead,
        )
        self.learner = Learner(parts, SPACES, resumed)
        self.failure: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)
        self.redis = server.client()
        self.worker = WorkerChannel(self.redis, self.config.key_prefix)
        self.sequence = 0
        self.thread.start()

    def _run(self) -> None:
        try:
            self.learner.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failure.append(error)

    @property
    def status(self) -> TrainerStatus:
        return self.board.status

    def take(self) -> Ticket:
        end = time.monotonic() + PATIENCE_SECONDS
        while (ticket := self.worker.take(0.1)) is None:
            assert not self.failure, self.failure
            assert time.monotonic() < end, f"no ticket: {self.status}"
        return ticket

    def deliver(self, fragment: Fragment) -> None:
        assert self.worker.deliver(self.epoch, encode(fragment))

    def answer(self, ticket: Ticket, **header: Any) -> None:
        """With the newest policy."""
        weights = self.worker.weights(None)
        assert weights is not None
        self.sequence += 1
        values = {"sequence": self.sequence, "version": weights.version, "ticket": ticket.id, **header}
        self.deliver(evaluation(**values) if ticket.kind == "evaluate" else rollout(**values))

    def until(self, condition: Callable[[TrainerStatus], object]) -> TrainerStatus:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition(status := self.status):
            assert not self.failure, self.failure
            assert time.monotonic() < end, status
            time.sleep(0.01)
        return status

    def end(self) -> None:
        self.stop.set()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


@pytest.fixture
def store(s3: S3Server) -> HeldStore:
    return HeldStore(s3)


@pytest.fixture
def start(redis: Redis, redis_server: RedisServer, store: HeldStore) -> Iterator[Callable[..., Trainer]]:
    trainers: list[Trainer] = []

    def make(**arguments: Any) -> Trainer:
        trainers.append(Trainer(redis_server, store, **arguments))
        return trainers[-1]

    yield make
    store.goes_on.set()
    for trainer in trainers:
        trainer.end()


def updates(count: int) -> Callable[[TrainerStatus], bool]:
    return lambda status: status.progress.updates >= count


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
            pipeline.xadd(f"ratchet:1f2e:out:{trainer.epoch}", fields)
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
