"""Rates: exact on small cases by enumeration, honest under peeking by simulation, quick to see a fault."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.evidence import Count, Rate, RateRatio, dump, load
from ratchet.evidence.rates import Looks

RUNS = 1_000
ALPHA = 0.05


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def most_failures(runs: int, alpha: float) -> int:
    """What a true chance of alpha exceeds once in 10,000 times, so that the test fails for a reason."""
    tail, k = 1.0, 0
    while tail > 1e-4:
        tail -= binomial(runs, k, alpha)
        k += 1
    return k


def test_the_e_value_of_one_bernoulli_arm_has_expectation_one_at_the_limit():
    n, limit = 12, 0.2
    expected = sum(
        binomial(n, k, limit) * math.exp(Rate(limit, Count(n, k)).log_e_above) for k in range(n + 1)
    )
    assert expected == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.19])
def test_a_rate_below_the_limit_makes_the_e_value_smaller(rate: float):
    n, limit = 12, 0.2
    expected = sum(
        binomial(n, k, rate) * math.exp(Rate(limit, Count(n, k)).log_e_above) for k in range(n + 1)
    )
    assert expected < 1


@pytest.mark.parametrize("allowed", [1.0, 1.5])
@pytest.mark.parametrize("base", [0.001, 0.05, 0.3, 0.66])
@pytest.mark.parametrize("sizes", [(1, 9), (4, 4), (6, 2)])
def test_the_ratio_e_value_never_expects_more_than_one_whatever_the_base_rate(
    allowed: float, base: float, sizes: tuple[int, int]
):
    canary_n, stable_n = sizes
    above = below = 0.0
    for canary_bad, stable_bad in itertools.product(range(canary_n + 1), range(stable_n + 1)):
        chance = binomial(canary_n, canary_bad, allowed * base) * binomial(stable_n, stable_bad, base)
        test = RateRatio(allowed).add(Count(canary_n, canary_bad), Count(stable_n, stable_bad))
        above += chance * math.exp(test.log_e_above)
        below += chance * math.exp(test.log_e_below)
    assert above <= 1 + 1e-9
    assert below <= 1 + 1e-9


def test_the_ratio_e_value_is_a_supermartingale_when_weight_and_base_rate_change():
    """Two intervals enumerated: 1:9 at 1% errors, then 5:5 at 40%; equal arms throughout."""
    expected = 0.0
    cells = [
        (binomial(1, a, 0.01) * binomial(9, b, 0.01), Count(1, a), Count(9, b))
        for a, b in itertools.product(range(2), range(10))
    ]
    later = [
        (binomial(5, a, 0.4) * binomial(5, b, 0.4), Count(5, a), Count(5, b))
        for a, b in itertools.product(range(6), range(6))
    ]
    for (first, *one), (second, *two) in itertools.product(cells, later):
        expected += first * second * math.exp(RateRatio(1.0).add(*one).add(*two).log_e_above)
    assert expected <= 1 + 1e-9


def peeked(rng: np.random.Generator, canary: float, base: float, seconds: int, allowed: float) -> float:
    """The most evidence seen by one who looks every second at 5 + 45 requests, the base rate moving."""
    test, most = RateRatio(allowed), 0.0
    swing = 1 + 0.9 * np.sin(np.arange(seconds) / 20)
    bad_c, bad_s = rng.binomial(5, canary * swing), rng.binomial(45, base * swing)
    for a, b in zip(bad_c.tolist(), bad_s.tolist(), strict=True):
        test = test.add(Count(5, a), Count(45, b))
        most = max(most, test.log_e_above)
    return most


def test_peeking_each_second_stays_within_alpha():
    rng = np.random.default_rng(1)
    false = sum(peeked(rng, 0.1, 0.1, 80, 1.0) >= math.log(1 / ALPHA) for _ in range(RUNS))
    assert 0 < false < most_failures(RUNS, ALPHA)


def test_ten_times_the_errors_are_seen_within_a_thousand_requests():
    rng = np.random.default_rng(2)
    seen = sum(peeked(rng, 0.05, 0.005, 40, 1.0) >= math.log(1 / ALPHA) for _ in range(200))
    assert seen > 170


@pytest.mark.parametrize("limit", [0.01, 0.2])
def test_peeking_at_a_rate_that_is_just_at_its_limit_stays_within_alpha(limit: float):
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(RUNS):
        bad = np.cumsum(rng.binomial(20, limit, 40)).tolist()
        looks = (Rate(limit, Count(20 * second, k)) for second, k in enumerate(bad, 1))
        false += any(look.log_e_above >= math.log(1 / ALPHA) for look in looks)
    assert 0 < false < most_failures(RUNS, ALPHA)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=8))
def test_batches_of_the_same_proportion_add_up_to_the_same_evidence(batches: list[tuple[int, int]]):
    apart = RateRatio(1.5)
    for a, b in batches:
        apart = apart.add(Count(3, a), Count(7, b))
    n = len(batches)
    together = RateRatio(1.5).add(
        Count(3 * n, sum(a for a, _ in batches)), Count(7 * n, sum(b for _, b in batches))
    )
    assert apart.log_e_above == pytest.approx(together.log_e_above, abs=1e-9)
    assert apart.interval(0.05) == together.interval(0.05)


def test_trouble_in_both_arms_while_the_weight_ramps_is_no_evidence():
    """Simpson's paradox: pooled, canary has 33% errors against 18%, yet in each second both are equal."""
    test = RateRatio(1.0).add(Count(100, 1), Count(900, 9)).add(Count(900, 360), Count(100, 40))
    test = test.add(Count(100, 1), Count(900, 9))
    assert test.canary.rate > 1.5 * test.stable.rate
    assert test.log_e_above < math.log(2)


def test_an_arm_that_is_silent_is_no_evidence():
    assert RateRatio(1.0).add(Count(10, 10), Count()).log_e_above == pytest.approx(0, abs=1e-9)
    assert RateRatio(1.0).add(Count(), Count(10, 10)).log_e_above == pytest.approx(0, abs=1e-9)


counts = st.builds(Count, st.integers(0, 10**12), st.integers(0, 10**12))


@given(counts, counts, st.sampled_from([1e-6, 0.5, 1.0, 3.0]))
def test_no_counts_however_extreme_give_nan(canary: Count, stable: Count, allowed: float):
    test = RateRatio(allowed).add(canary, stable)
    low, high = test.interval(0.01)
    assert low <= high
    assert not math.isnan(test.log_e_above + test.log_e_below + test.estimate)
    rate = Rate(allowed, canary)
    low, high = rate.interval(0.01)
    assert 0 <= low <= high <= 1
    assert not math.isnan(rate.log_e_above)
    assert not math.isnan(rate.log_e_below)


def test_bounds_and_evidence_agree():
    test = RateRatio(1.0).add(Count(100, 5), Count(900, 5))
    low, _ = test.interval(ALPHA)
    assert (low >= 1.0) == (test.log_e_above >= math.log(1 / ALPHA))
    assert low < 9 < test.interval(ALPHA)[1]


@given(st.lists(st.tuples(counts, counts), max_size=4))
def test_the_state_survives_json(increments: list[tuple[Count, Count]]):
    test = RateRatio(1.5)
    for canary, stable in increments:
        test = test.add(canary, stable)
    assert load(RateRatio, dump(test)) == test


@pytest.mark.parametrize("limit", [0.0001, 0.001, 0.01, 0.3, 0.9])
def test_what_fails_in_one_look_alone_is_never_enough(limit: float):
    assert Looks(limit).add(Count(10**6, 10**6)).log_e_above < math.log(20)


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.5])
def test_bets_on_looks_are_fair_at_the_limit(limit: float):
    good, bad = Count(50, 0), Count(50, 50)
    expected = sum(
        first_chance * second_chance * math.exp(Looks(limit).add(first).add(second).log_e_above)
        for first_chance, first in ((1 - limit, good), (limit, bad))
        for second_chance, second in ((1 - limit, good), (limit, bad))
    )
    assert expected == pytest.approx(1)


def test_bursts_as_frequent_as_is_tolerated_condemn_no_more_often_than_promised():
    rng = np.random.default_rng(5)
    condemned = 0
    for _ in range(300):
        looks, fails = Looks(0.01), rng.random(400) < 0.01
        worst = 0.0
        for fail in fails:
            looks = looks.add(Count(500, 500 * bool(fail)))
            worst = max(worst, looks.log_e_above)
        condemned += worst >= math.log(20)
    assert condemned <= most_failures(300, 0.05)


def test_a_rate_above_what_is_tolerated_is_seen_within_seconds():
    rng = np.random.default_rng(6)
    needed: list[int] = []
    for _ in range(50):
        looks, seconds = Looks(0.01), 0
        while looks.log_e_above < math.log(100) and seconds < 500:
            looks, seconds = looks.add(Count(50, int(rng.binomial(50, 0.05)))), seconds + 1
        needed.append(seconds)
    assert np.median(needed) <= 15
