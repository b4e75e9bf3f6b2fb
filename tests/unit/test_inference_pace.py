"""How the server learns what a turn costs: no stall sheds, a slow policy does, and neither for ever."""

import random

import pytest
from ratchet_inference.pace import Pace

LIMIT = 0.1


def shed(
    pace: Pace, rate: float, cost: list[float], stalls: list[float], waiting: float = 1.0
) -> tuple[list[int], list[float]]:
    """A server at work: of each turn the units that it refused, and the seconds that it took.

    What comes during a turn waits for the next one, and is refused where that would take more than LIMIT.
    """
    refused: list[int] = []
    took: list[float] = []
    for each, stall in zip(cost, stalls, strict=True):
        come = max(1, round(waiting))
        units = come
        while units > 1 and pace.seconds(units) > LIMIT:
            units -= 1
        seconds = 1e-4 + units * each + stall
        pace.measured(units, seconds)
        refused.append(come - units)
        took.append(seconds)
        waiting = rate * seconds
    return refused, took


@pytest.mark.parametrize("rate", [10, 100, 1000, 5000])
@pytest.mark.parametrize("seed", range(20))
def test_stalls_shed_nothing_that_the_server_can_take(seed: int, rate: float):
    """Whatever their length, where after each the server works undisturbed for a turn."""
    dice = random.Random(seed)
    stalls = [dice.choice([0.0, dice.uniform(0, 0.01), dice.uniform(0, 0.4)]) * (i % 2) for i in range(300)]
    refused, _ = shed(Pace(), rate, [3e-5] * 300, stalls)
    assert sum(refused) == 0


@pytest.mark.parametrize("cost", [2e-3, 2e-2])
def test_a_policy_that_becomes_slow_is_found_out_within_a_few_turns(cost: float):
    refused, took = shed(Pace(), 1000, [3e-5] * 50 + [cost] * 50, [0.0] * 100)
    assert sum(refused[:50]) == 0
    assert all(more > 0 for more in refused[60:])
    assert max(took[60:]) < 1.5 * LIMIT + cost


def test_a_policy_that_is_fast_again_is_believed():
    dice = random.Random(1)
    cost = [2e-2] * 50 + [3e-5] * 50
    refused, _ = shed(Pace(), 1000, cost, [dice.random() * 1e-3 for _ in cost])
    assert sum(refused[60:]) == 0
