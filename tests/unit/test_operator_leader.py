"""How long a leader leads: by a clock that moves on only when nothing is left to do."""

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable

import pytest
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock
from ratchet_operator.leader import LEASE_SECONDS, RENEW_DEADLINE, RETRY_PERIOD, Election, since_boot


class Skipping(asyncio.SelectorEventLoop):
    """Where others would sleep, its time is over at once."""

    def __init__(self) -> None:
        self._now = 0.0
        loop = self

        class Selector(selectors.SelectSelector):
            def select(self, timeout: float | None = None):
                loop._now += timeout or 0.0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self._now


class Shared(BaseLock):
    """A lock in memory, whose renewals go as ordered.

    Args:
        renewal: awaited between the write and its answer; says whether the answer is yes.

    """

    def __init__(self, renewal: Callable[[], Awaitable[bool]]) -> None:
        super().__init__("lease", "team", "one")
        self.record: LeaderElectionRecord | None = None
        self.written: list[float] = []
        self._renewal = renewal

    async def get(self, name: str, namespace: str):
        if self.record is not None:
            return True, self.record
        missing = ApiException(status=404)
        missing.body = '{"code": 404}'
        return False, missing

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        self._write(election_record)
        return True

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        self._write(updated_record)
        return await self._renewal()

    def _write(self, record: LeaderElectionRecord) -> None:
        self.record = record
        self.written.append(asyncio.get_running_loop().time())


def led(lock: Shared) -> float:
    """Lead until that ends; returns when."""

    async def lead() -> None:
        await asyncio.Event().wait()

    async def over() -> None:
        return

    async def run() -> float:
        await Election(
            Config(
                lock,
                LEASE_SECONDS,
                RENEW_DEADLINE,
                RETRY_PERIOD,
                onstarted_leading=lead,
                onstopped_leading=over,
            ),
            asyncio.get_running_loop().time,
        ).run()
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=Skipping) as runner:
        return runner.run(run())


@pytest.mark.parametrize("late", [0.0, 9.5])
def test_a_leader_stops_before_the_lease_that_others_saw_is_over(late):
    answers = iter([late])

    async def renewal() -> bool:
        await asyncio.sleep(next(answers, 1000.0))
        return True

    lock = Shared(renewal)

    ended = led(lock)

    answered = lock.written[1]  # of the later one others saw nothing, or they wait the longer for it
    assert ended < answered + LEASE_SECONDS


def test_a_leader_that_reads_anothers_name_stops_at_once():
    async def renewal() -> bool:
        assert lock.record is not None
        lock.record = LeaderElectionRecord("two", "15", "now", "now")
        return True

    lock = Shared(renewal)

    ended = led(lock)

    assert ended == lock.written[-1] + RETRY_PERIOD


def test_a_leader_goes_on_through_refusals_that_end_in_time():
    answers = iter([True, False, False, True])

    async def renewal() -> bool:
        if (answer := next(answers, None)) is None:
            await asyncio.sleep(1000.0)
        return bool(answer)

    lock = Shared(renewal)

    ended = led(lock)

    assert ended == 4 * RETRY_PERIOD + RENEW_DEADLINE + RETRY_PERIOD


def obliging() -> Config:
    """Of a lock that is always given."""

    async def renewal() -> bool:
        return True

    async def nothing() -> None:
        return

    return Config(Shared(renewal), LEASE_SECONDS, RENEW_DEADLINE, RETRY_PERIOD, nothing, nothing)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="the platform counts no suspended seconds")
def test_a_leader_whose_machine_was_suspended_knows_that_it_leads_no_more(monkeypatch: pytest.MonkeyPatch):
    suspended, read = [0.0], time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: read(clock) + suspended[0])

    async def scenario() -> None:
        election = Election(obliging())
        assert await election.try_acquire_or_renew()
        assert election.holds()

        suspended[0] = LEASE_SECONDS

        assert not election.holds()

    asyncio.run(scenario())


def test_a_platform_that_counts_no_suspended_seconds_has_a_clock_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    before = time.monotonic()
    assert before <= since_boot() <= time.monotonic()


def test_a_leader_that_stood_still_for_too_long_knows_that_it_leads_no_more():
    now = [100.0]

    async def scenario() -> None:
        election = Election(obliging(), lambda: now[0])
        assert not election.holds()
        assert await election.try_acquire_or_renew()
        assert election.holds()
        now[0] += LEASE_SECONDS - 2.5
        assert election.holds()
        now[0] += 1.0
        assert not election.holds()
        assert await election.try_acquire_or_renew()
        assert election.holds()
        election.resign()
        assert not election.holds()

    asyncio.run(scenario())
