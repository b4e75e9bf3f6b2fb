"""A learner in a thread, with a real Redis and a real S3 server, for tests that play the workers."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fragments import SPACES, evaluation, evaluation_with_actions, rollout
from ratchet_trainer.board import Board
from ratchet_trainer.interruption import pause
from ratchet_trainer.learner import Learner, Parts
from ratchet_trainer.metrics import Metrics
from ratchet_trainer.resume import Resumed
from ratchet_trainer.saving import Saver
from ratchet_trainer.settings import Settings
from redis import Redis
from redisserver import RedisServer
from s3server import HeldStore, S3Server

from ratchet.api.v1alpha1 import TrainerStatus, TrainingConfig
from ratchet.checkpoints import Lineage
from ratchet.experience import Fragment, LearnerChannel, Patience, Ticket, WorkerChannel, encode

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
        evaluated = evaluation_with_actions if ticket.actions else evaluation
        self.deliver(evaluated(**values) if ticket.kind == "evaluate" else rollout(**values))

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
