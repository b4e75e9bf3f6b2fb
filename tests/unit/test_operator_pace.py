"""When statuses may be written, by a clock that stands until it is told."""

import pytest
from ratchet_operator.kinds import Key
from ratchet_operator.pace import APART, CROWD, CROWD_SECONDS, LONGEST_APART, TOGETHER, Pace


def key(number: int) -> Key:
    return Key("RLTrainingJob", "team", f"job-{number}")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_who_writes_alone_writes_at_once_and_then_after_a_while():
    clock = Clock()
    pace = Pace(clock)

    assert pace.wait(key(1)) == 0.0
    pace.wrote(key(1))
    assert pace.wait(key(1)) == APART
    clock.now += APART
    assert pace.wait(key(1)) == 0.0


def test_a_new_object_waits_though_it_has_never_written():
    pace = Pace(Clock())

    for _ in range(CROWD):  # its steps before it has written; one is no crowd
        pace.begin(key(1))

    assert pace.wait(key(1)) == APART


def test_of_many_each_gets_the_turn_that_it_was_told_however_often_it_asks():
    clock = Clock()
    pace = Pace(clock)
    waits = [pace.wait(key(number)) for number in range(50)]
    assert waits == pytest.approx([number / TOGETHER for number in range(50)])

    clock.now += 1.0

    assert [pace.wait(key(number)) for number in range(50)] == pytest.approx(
        [max(0.0, wait - 1.0) for wait in waits]
    )


def test_who_had_to_wait_comes_back_more_and_more_rarely_until_the_crowd_is_gone():
    clock = Clock()
    pace = Pace(clock)
    last = key(999)
    apart: list[float] = []
    for crowd in (50, 50, 50, 0):
        for number in range(crowd):
            pace.wait(key(number))
        clock.now += pace.wait(last)
        for number in range(crowd):
            pace.wrote(key(number))
        pace.wrote(last)
        apart.append(pace.wait(last))
        clock.now += LONGEST_APART

    assert apart == pytest.approx([2 * APART, 4 * APART, LONGEST_APART, APART])


def test_in_a_crowd_of_new_objects_each_comes_more_rarely_until_it_is_over():
    clock = Clock()
    pace = Pace(clock)
    for number in range(CROWD):
        pace.begin(key(number))
    last = key(CROWD - 1)

    assert pace.wait(last) == 2 * APART
    clock.now += 2 * APART
    assert pace.wait(last) == 0.0
    pace.wrote(last)
    assert pace.wait(last) == 4 * APART
    clock.now += CROWD_SECONDS
    assert pace.wait(last) == 0.0
    pace.wrote(last)
    assert pace.wait(last) == APART


def test_who_has_his_turn_lets_new_objects_children_go_first_though_not_for_ever():
    clock = Clock()
    pace = Pace(clock)
    waited = 0.0

    while (wait := pace.wait(key(1), others_begin=True)) > 0:
        waited += wait
        clock.now += wait

    assert waited == LONGEST_APART
    assert Pace(clock).wait(key(1), others_begin=False) == 0.0
