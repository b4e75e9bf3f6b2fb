"""The queue: who goes first, who waits, who is tried again."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ratchet_operator.kinds import Key
from ratchet_operator.workqueue import FIRST_BACKOFF, STARVATION, Lane, WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def key(name: object) -> Key:
    return Key("RLTrainingJob", "team", str(name))


def drained(queue: WorkQueue) -> list[str]:
    async def drain() -> list[str]:
        names: list[str] = []
        while queue.depth():
            found = await queue.get()
            queue.done(found)
            names.append(found.name)
        return names

    return asyncio.run(drain())


def test_an_edit_overtakes_a_burst_and_a_resync_waits_for_it():
    queue = WorkQueue(Clock())
    queue.add(key("resync"), Lane.RESYNC)
    for number in range(5):
        queue.add(key(number), Lane.CHANGE)
    queue.add(key("new"), Lane.NEW)
    queue.add(key("edited"), Lane.EDIT)

    assert drained(queue) == ["edited", "new", "0", "1", "2", "3", "4", "resync"]


def test_a_key_waits_once_and_moves_up():
    queue = WorkQueue(Clock())
    queue.add(key("a"), Lane.CHANGE)
    queue.add(key("b"), Lane.RESYNC)
    queue.add(key("b"), Lane.EDIT)
    queue.add(key("b"), Lane.CHANGE)

    assert drained(queue) == ["b", "a"]


def test_a_resync_is_not_starved():
    queue = WorkQueue(Clock())
    queue.add(key("resync"), Lane.RESYNC)
    for number in range(100):
        queue.add(key(number), Lane.CHANGE)

    assert drained(queue).index("resync") <= STARVATION


def test_a_key_is_worked_on_by_one_worker_and_again_when_it_changed_meanwhile():
    async def scenario() -> None:
        queue = WorkQueue(Clock())
        queue.add(key("a"), Lane.CHANGE)
        first = await queue.get()
        queue.add(key("a"), Lane.CHANGE)
        queue.add(key("b"), Lane.CHANGE)
        assert await queue.get() == key("b")
        queue.done(first)
        assert await queue.get() == key("a")

    asyncio.run(scenario())


def test_failures_wait_longer_each_time_until_one_goes_well():
    async def scenario() -> list[float]:
        clock = Clock()
        queue = WorkQueue(clock)
        waits: list[float] = []
        queue.add(key("a"), Lane.CHANGE)
        for _ in range(3):
            waits.append(queue.failed(await queue.get()))
            clock.now += waits[-1]
        queue.done(await queue.get())
        queue.add(key("a"), Lane.CHANGE)
        waits.append(queue.failed(await queue.get()))
        return waits

    assert asyncio.run(scenario()) == [FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF, FIRST_BACKOFF]


def test_an_edit_during_a_step_that_fails_need_not_wait():
    async def scenario() -> None:
        queue = WorkQueue(Clock())
        queue.add(key("a"), Lane.CHANGE)
        first = await queue.get()
        queue.add(key("a"), Lane.EDIT)
        queue.failed(first)
        assert queue.depth() == 1

        second = await queue.get()
        queue.add(key("a"), Lane.CHANGE)
        queue.failed(second)
        assert queue.depth() == 0

    asyncio.run(scenario())


def test_a_server_that_asks_for_time_gets_it_even_where_there_is_an_edit():
    async def scenario() -> None:
        queue = WorkQueue(clock := Clock())
        queue.add(key("a"), Lane.CHANGE)
        first = await queue.get()
        queue.add(key("a"), Lane.EDIT)

        assert queue.failed(first, at_least=7.0) == 7.0

        clock.now = 6.9
        assert queue.depth() == 0
        clock.now = 7.0
        assert queue.depth() == 1

    asyncio.run(scenario())


def test_the_earliest_of_several_times_stands():
    async def scenario() -> None:
        clock = Clock()
        queue = WorkQueue(clock)
        queue.add_after(key("a"), 50)
        queue.add_after(key("a"), 10)
        queue.add_after(key("a"), 90)
        clock.now = 10
        assert await queue.get() == key("a")
        queue.done(key("a"))
        clock.now = 1000
        queue.add(key("b"), Lane.RESYNC)
        assert await queue.get() == key("b")

    asyncio.run(scenario())


def test_the_age_of_the_oldest():
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add(key("a"), Lane.RESYNC)
    clock.now = 7
    queue.add(key("b"), Lane.EDIT)

    assert queue.oldest_age() == 7


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(Lane))))
def test_everything_that_was_added_comes_out_once(added):
    queue = WorkQueue(Clock())
    for name, lane in added:
        queue.add(key(name), lane)

    assert sorted(drained(queue)) == sorted({str(name) for name, _ in added})


def test_what_follows_one_upon_the_other_is_kept_apart_from_the_last_step_and_the_first_is_not():
    clock = Clock()
    queue = WorkQueue(clock)

    async def steps_until(end: float) -> list[float]:
        """When the key had its steps, while something that asks for one happens every 0.25 s."""
        found: list[float] = []
        while clock.now < end:
            queue.add_after(key("a"), 0.0, apart=1.0)
            while queue.depth():
                queue.done(await queue.get())
                found.append(clock.now)
            clock.now += 0.25
        return found

    assert asyncio.run(steps_until(3.0)) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("ticks", range(8))
def test_a_worker_ends_when_it_is_told_to_though_a_key_comes_at_that_moment(ticks):
    async def scenario() -> None:
        queue = WorkQueue(time.monotonic)
        queue.add_after(key("later"), 3600.0)

        async def work() -> None:
            while True:
                queue.done(await queue.get())

        worker = asyncio.create_task(work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        queue.add(key("now"), Lane.CHANGE)
        for _ in range(ticks):
            await asyncio.sleep(0)
        worker.cancel()
        done, _ = await asyncio.wait([worker], timeout=5)
        worker.cancel()
        assert done

    asyncio.run(scenario())
