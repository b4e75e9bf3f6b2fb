"""The channels against a real Redis server: nothing lost silently or counted twice, one learner at a time."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fragments import rollout
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redisserver import RedisServer

from ratchet.experience import (
    CorruptFragment,
    DataPlaneLost,
    Fenced,
    Fragment,
    HighWaterMarks,
    LearnerChannel,
    Patience,
    RedisUnreachable,
    Ticket,
    Weights,
    WorkerChannel,
    encode,
)
from ratchet.policies import EnvironmentSpec, SpaceSpec

PREFIX = "ratchet:1f2e:"
SPEC = EnvironmentSpec(
    observation=SpaceSpec(kind="Box", shape=(4,), low=-1.0, high=float("inf")),
    action=SpaceSpec(kind="Discrete", dtype="int64", n=2),
)


@pytest.fixture
def learner(redis: Redis) -> LearnerChannel:
    channel = LearnerChannel(redis, PREFIX)
    channel.begin(0)
    return channel


@pytest.fixture
def worker(redis: Redis) -> WorkerChannel:
    return WorkerChannel(redis, PREFIX)


def ticket(epoch: int, number: int = 1, kind: Any = "rollout") -> Ticket:
    return Ticket(kind=kind, id=number, epoch=epoch, version=0)


def deliver(worker: WorkerChannel, epoch: int, **header: Any) -> bool:
    return worker.deliver(epoch, encode(rollout(**header)))


def fragments(channel: LearnerChannel, count: int = 100) -> list[Fragment]:
    return [entry.outcome for entry in channel.read(count, 1) if isinstance(entry.outcome, Fragment)]


class CutOff:
    """A Redis client whose answers are lost: commands are executed, and a connection error follows."""

    def __init__(self, redis: Redis, lost: int) -> None:
        self.redis, self.lost = redis, lost

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.redis, name)
        return self._losing(attribute) if name in ("blpop", "xreadgroup", "set") else attribute

    def register_script(self, script: str) -> Callable[..., Any]:
        return self._losing(self.redis.register_script(script))

    def _losing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = function(*args, **kwargs)
            if self.lost > 0:
                self.lost -= 1
                raise RedisConnectionError("connection lost before the answer")
            return answer

        return call


def hasty(**changes: Any) -> Patience:
    return Patience(**{"first": 0.0, "longest": 0.0, **changes})


def cut_off(redis: Redis, lost: int = 1) -> Any:
    return CutOff(redis, lost)


# --- work goes round


def test_work_goes_from_ticket_to_settled_entry(learner: LearnerChannel, worker: WorkerChannel, redis: Redis):
    learner.publish(3, b"weights")
    learner.issue([ticket(learner.epoch)])

    assert learner.outstanding() == 1
    assert worker.take(1) == ticket(learner.epoch)
    assert worker.weights(None) == Weights(learner.epoch, 3, b"weights")
    assert deliver(worker, learner.epoch, version=3)

    [entry] = learner.read(10, 1000)
    assert isinstance(entry.outcome, Fragment)
    assert entry.outcome.header.version == 3
    learner.settle([entry.id])
    stream = f"{PREFIX}out:{learner.epoch}"
    assert redis.xlen(stream) == 0
    assert redis.xpending(stream, "learner")["pending"] == 0
    assert learner.outstanding() == 0


def test_an_evaluation_is_taken_before_what_waits(learner: LearnerChannel, worker: WorkerChannel):
    learner.issue([ticket(learner.epoch, 1), ticket(learner.epoch, 2), ticket(learner.epoch, 3, "evaluate")])
    assert [taken.id for taken in iter(lambda: worker.take(0.01), None)] == [3, 1, 2]


def test_no_ticket_and_no_entry_are_values(learner: LearnerChannel, worker: WorkerChannel):
    assert worker.take(0.01) is None
    assert learner.read(1, 1) == []
    assert worker.weights(None) is None


def test_an_entry_is_given_once_by_a_channel(learner: LearnerChannel, worker: WorkerChannel):
    deliver(worker, learner.epoch)
    assert len(learner.read(10, 1)) == 1
    assert learner.read(10, 1) == []


def test_a_ticket_of_another_epoch_is_a_mistake_of_the_caller(learner: LearnerChannel):
    with pytest.raises(ValueError, match="epoch 9"):
        learner.issue([ticket(9)])


def test_settling_nothing_is_no_command(learner: LearnerChannel):
    learner.settle([])


# --- the spaces


def test_the_first_worker_says_what_the_spaces_are(learner: LearnerChannel, redis: Redis):
    other = SPEC.model_copy(update={"reward_threshold": 475.0})
    assert learner.environment_spec() is None
    assert WorkerChannel(redis, PREFIX).offer_spec(SPEC) == SPEC
    assert WorkerChannel(redis, PREFIX).offer_spec(other) == SPEC
    assert learner.environment_spec() == SPEC


def test_an_idle_worker_offers_the_spaces_again_after_redis_lost_them(
    learner: LearnerChannel, worker: WorkerChannel, redis: Redis
):
    worker.offer_spec(SPEC)
    redis.flushall()
    worker.take(0.01)
    assert learner.environment_spec() == SPEC


# --- weights


def test_weights_are_pulled_only_when_they_changed(learner: LearnerChannel, worker: WorkerChannel):
    learner.publish(1, b"one")
    first = worker.weights(None)
    assert worker.weights(first) is None
    learner.publish(2, b"two")
    assert worker.weights(first) == Weights(learner.epoch, 2, b"two")


def test_the_same_version_of_a_new_epoch_is_newer(
    learner: LearnerChannel, worker: WorkerChannel, redis: Redis
):
    learner.publish(5, b"before the restart")
    held = worker.weights(None)
    successor = LearnerChannel(redis, PREFIX)
    successor.begin(0)
    successor.publish(5, b"after the restart")
    assert worker.weights(held) == Weights(successor.epoch, 5, b"after the restart")


# --- workers die, answers get lost


def test_the_ticket_of_a_killed_worker_can_be_issued_again(learner: LearnerChannel, redis: Redis):
    learner.issue([ticket(learner.epoch, 1)])
    killed = WorkerChannel(redis, PREFIX)
    assert killed.take(0.01) is not None
    assert learner.outstanding() == 0

    learner.issue([ticket(learner.epoch, 2)])
    twin = WorkerChannel(redis, PREFIX).take(0.01)
    assert twin is not None
    assert twin.id == 2
    assert deliver(killed, learner.epoch, incarnation="late", ticket=1)
    assert deliver(killed, learner.epoch, incarnation="twin", ticket=2)
    marks = HighWaterMarks()
    assert [marks.accept(f.header.incarnation, f.header.sequence) for f in fragments(learner)] == [True, True]


def test_a_delivery_whose_answer_is_lost_arrives_twice_and_counts_once(learner: LearnerChannel, redis: Redis):
    worker = WorkerChannel(cut_off(redis), PREFIX, hasty())
    assert deliver(worker, learner.epoch)
    assert deliver(worker, learner.epoch, sequence=2)
    arrived = [f.header.sequence for f in fragments(learner)]
    marks = HighWaterMarks()
    assert arrived == [1, 1, 2]
    assert [marks.accept("a1b2", sequence) for sequence in arrived] == [True, False, True]


def test_entries_whose_answer_is_lost_come_first_and_in_order(worker: WorkerChannel, redis: Redis):
    client = cut_off(redis, lost=0)
    learner = LearnerChannel(client, PREFIX, hasty())
    learner.begin(0)
    deliver(worker, learner.epoch, sequence=1)
    handed_out = learner.read(1, 1)
    for sequence in (2, 3, 4):
        deliver(worker, learner.epoch, sequence=sequence)
    client.lost = 1

    read = [f.header.sequence for _ in range(3) for f in fragments(learner, count=2)]

    assert len(handed_out) == 1
    assert read == [2, 3, 4]


@pytest.mark.parametrize("lost", [1, 2])
def test_tickets_whose_answer_is_lost_are_issued_once(redis: Redis, lost: int):
    client = cut_off(redis, lost=0)
    learner = LearnerChannel(client, PREFIX, hasty())
    learner.begin(0)
    client.lost = lost
    learner.issue([ticket(learner.epoch, 1), ticket(learner.epoch, 2)])
    assert learner.outstanding() == 2


def test_a_begin_whose_answer_is_lost_raises_the_epoch_once(redis: Redis):
    learner = LearnerChannel(cut_off(redis, lost=2), PREFIX, hasty())
    assert learner.begin(0) == 1


def test_a_restarted_server_is_waited_for(redis: Redis, redis_server: RedisServer):
    def restart(_: float) -> None:
        redis_server.start()

    worker = WorkerChannel(redis, PREFIX, Patience(sleep=restart))
    redis_server.stop()
    assert worker.offer_spec(SPEC) == SPEC


def test_patience_ends(redis: Redis, redis_server: RedisServer):
    now = iter(range(0, 1000, 50))
    pauses: list[float] = []
    patience = Patience(total=120, sleep=pauses.append, clock=lambda: float(next(now)))
    worker = WorkerChannel(redis, PREFIX, patience)
    redis_server.stop()
    with pytest.raises(RedisUnreachable, match="150 seconds"):
        worker.take(0.01)
    assert len(pauses) == 2
    assert 0 < pauses[0] <= patience.first


# --- Redis forgets


def test_redis_flushed_is_noticed_and_everything_can_be_written_again(
    learner: LearnerChannel, worker: WorkerChannel, redis: Redis
):
    learner.publish(1, b"weights")
    learner.issue([ticket(learner.epoch)])
    before = learner.epoch
    redis.flushall()

    for call in (
        lambda: learner.read(1, 1),
        lambda: learner.publish(2, b"weights"),
        lambda: learner.issue([ticket(before)]),
        learner.outstanding,
    ):
        with pytest.raises(DataPlaneLost):
            call()
    assert not deliver(worker, before), "there is no learner of that epoch to read it"
    assert redis.keys() == []

    assert learner.begin(0) > before
    learner.publish(2, b"weights")
    learner.issue([ticket(learner.epoch, 8)])
    taken = worker.take(1)
    assert taken is not None
    assert not deliver(worker, before)
    assert deliver(worker, taken.epoch)
    assert len(fragments(learner)) == 1


def test_redis_flushed_under_a_blocked_reader_is_noticed(learner: LearnerChannel, redis_server: RedisServer):
    outcome: list[BaseException] = []

    def read_on() -> None:
        try:
            while True:
                learner.read(1, 50)
        except DataPlaneLost as error:
            outcome.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    with redis_server.client() as client:
        client.flushall()
    reader.join(30)
    assert len(outcome) == 1


def test_redis_that_went_back_in_time_counts_as_lost(learner: LearnerChannel, redis: Redis):
    learner.begin(6)
    redis.set(f"{PREFIX}epoch", 2)
    with pytest.raises(DataPlaneLost):
        learner.publish(1, b"weights")
    assert learner.begin(0) == 8


# --- two learners


def test_the_older_learner_can_write_nothing(learner: LearnerChannel, worker: WorkerChannel, redis: Redis):
    learner.publish(9, b"old")
    learner.issue([ticket(learner.epoch)])
    newer = LearnerChannel(redis, PREFIX)
    assert newer.begin(0) == learner.epoch + 1
    newer.publish(4, b"new")

    for call in (
        lambda: learner.publish(10, b"old"),
        lambda: learner.issue([ticket(learner.epoch)]),
        lambda: learner.read(1, 1),
        learner.outstanding,
    ):
        with pytest.raises(Fenced):
            call()
    assert worker.take(0.01) is None
    assert worker.weights(None) == Weights(newer.epoch, 4, b"new")


def test_a_late_fragment_of_an_older_epoch_is_discarded_and_leaves_no_stream(
    learner: LearnerChannel, worker: WorkerChannel, redis: Redis
):
    newer = LearnerChannel(redis, PREFIX)
    newer.begin(0)
    assert not deliver(worker, learner.epoch)
    assert fragments(newer) == []
    assert redis.keys(f"{PREFIX}out:*") == [f"{PREFIX}out:{newer.epoch}".encode()]


def test_two_learners_of_one_epoch_after_a_flush_are_told_apart(learner: LearnerChannel, redis: Redis):
    redis.flushall()
    newer = LearnerChannel(redis, PREFIX)
    assert newer.begin(0) == learner.epoch
    with pytest.raises(Fenced):
        learner.publish(1, b"old")
    newer.publish(1, b"new")


def test_the_epoch_is_above_that_of_the_checkpoint(redis: Redis):
    assert LearnerChannel(redis, PREFIX).begin(41) == 42
    assert LearnerChannel(redis, PREFIX).begin(7) == 43


def test_a_full_redis_takes_weights_and_tickets_for_only_the_learner_can_empty_it(
    worker: WorkerChannel, redis: Redis
):
    learner = LearnerChannel(redis, PREFIX, hasty(total=0.1))
    epoch = learner.begin(0)
    learner.publish(1, b"old weights")
    assert deliver(worker, epoch)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnreachable, match=r"had no room for .* seconds: raise .*maxMemory"):
            deliver(WorkerChannel(redis, PREFIX, hasty(total=0.1)), epoch)

        learner.publish(2, b"weights")
        learner.issue([ticket(epoch)])
        entries = learner.read(1, 1)
        learner.settle([entry.id for entry in entries])
    finally:
        redis.config_set("maxmemory", 0)

    assert len(entries) == 1
    assert worker.weights(None) == Weights(epoch, 2, b"weights")
    assert worker.take(0.1) == ticket(epoch)


def test_another_job_is_left_alone(learner: LearnerChannel, redis: Redis):
    other = LearnerChannel(redis, "ratchet:other:")
    other.begin(0)
    other.issue([ticket(other.epoch)])
    learner.begin(0)
    assert other.outstanding() == 1


# --- poison


def test_a_poisoned_entry_is_a_value_between_good_ones(
    learner: LearnerChannel, worker: WorkerChannel, redis: Redis
):
    stream = f"{PREFIX}out:{learner.epoch}"
    deliver(worker, learner.epoch, sequence=1)
    redis.xadd(stream, {"h": b"\xff", "b": b""})
    redis.xadd(stream, {"surprise": b"!"})
    deliver(worker, learner.epoch, sequence=2)
    entries = learner.read(10, 1)
    assert [isinstance(entry.outcome, CorruptFragment) for entry in entries] == [False, True, True, False]
    learner.settle([entry.id for entry in entries])
    assert redis.xlen(stream) == 0
