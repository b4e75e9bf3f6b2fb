"""When a client tries again, without sockets."""

import pytest
from clients import PATIENT

from ratchet.client import Failed, Overloaded, PolicyError, Refused, Retries, TimedOut, Unreachable
from ratchet.client.retrying import Budget


def test_retries_stay_within_their_share():
    budget = Budget(Retries(attempts=10, share=0.1, burst=5))
    granted = 0
    for _ in range(1_000):
        budget.request()
        granted += budget.pause(Unreachable(), 1, PATIENT) is not None
    assert 95 <= granted <= 105


def test_pauses_double_and_are_drawn():
    budget = Budget(Retries(attempts=5, first=0.01))
    longest = [budget.pause(Failed(), attempt, PATIENT, lambda _, most: most) for attempt in (1, 2, 3, 4, 5)]
    assert longest == [0.01, 0.02, 0.04, 0.08, None]
    assert budget.pause(Failed(), 1, PATIENT, lambda least, _: least) == 0.0


def test_the_server_says_how_long_to_wait_at_least():
    budget = Budget(Retries())
    assert budget.pause(Overloaded("", 2.0), 1, PATIENT, lambda least, _: least) == 2.0
    assert budget.pause(Overloaded("", 2.0), 1, PATIENT, lambda _, most: most) == pytest.approx(2.2)
    assert budget.pause(Overloaded("", 2.0), 1, 1.5) is None
    assert budget.pause(Overloaded("", 0.0), 1, PATIENT, lambda _, most: most) == pytest.approx(0.005)


@pytest.mark.parametrize("error", [Refused("no", 400), TimedOut()])
def test_some_errors_do_not_pass(error: PolicyError):
    assert Budget(Retries()).pause(error, 1, PATIENT) is None
