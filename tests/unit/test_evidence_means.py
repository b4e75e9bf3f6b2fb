"""Means of returns: exact where the range is known, honest under peeking where it is not."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.evidence import Cohort, Contrast, Episodes, Moments, OpenCohorts, dump, load
from ratchet.evidence.means import empirical_bernstein, normal_mixture

RUNS = 1_000
ALPHA = 0.05
MOST_FALSE = 80  # a chance of 5% gives more than 80 in 1,000 once in 10,000 times

Draw = Callable[[np.random.Generator, int], np.ndarray]


def moments(values: np.ndarray) -> Moments:
    return Moments(len(values), float(values.mean()), float(((values - values.mean()) ** 2).sum()))


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(500, 80, n)


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.exponential(10, n)


def rare_reward(rng: np.random.Generator, n: int) -> np.ndarray:
    return 100.0 * rng.binomial(1, 0.03, n)


def rare_fall(rng: np.random.Generator, n: int) -> np.ndarray:
    return -100.0 * rng.binomial(1, 0.03, n)


def first_rejection(
    rng: np.random.Generator, draw: Draw, *, cohorts: int, drop: float = 0.0, width: float | None = None
) -> int | None:
    """The cohort, of 3 canary and 17 stable episodes at a drifting level, at which the judge is sure."""
    test = Contrast()
    for index in range(cohorts):
        level = 0.0 if width else 50 * math.sin(index / 7)
        centers = (0.5, 0.5) if width and not index else None
        test = test.add(moments(draw(rng, 3) + level - drop), moments(draw(rng, 17) + level), centers)
        if test.log_e_below(width=width) >= math.log(1 / ALPHA):
            return index
    return None


@pytest.mark.parametrize("draw", [normal, skewed, rare_reward, rare_fall])
def test_peeking_after_each_cohort_stays_within_alpha_where_the_range_is_unknown(draw: Draw):
    rng = np.random.default_rng(1)
    false = sum(first_rejection(rng, draw, cohorts=60) is not None for _ in range(RUNS))
    assert false < MOST_FALSE


def test_the_same_simulation_rejects_most_runs_without_the_mixture():
    """What holds the false alarms back is the method and not the simulation: a repeated z-test fails it."""
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(200):
        z, n = rng.normal(size=1_000).cumsum(), np.arange(1, 1_001)
        false += bool((z / np.sqrt(n) > 1.645).any())
    assert false > 0.25 * 200


def test_a_drop_of_one_standard_deviation_is_seen_within_a_hundred_canary_episodes():
    rng = np.random.default_rng(2)

    def steady(rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.normal(0, 1, n)

    found = [first_rejection(rng, steady, cohorts=33, drop=1.0, width=None) for _ in range(200)]
    assert sum(at is not None for at in found) > 195


def test_the_test_of_known_range_is_a_supermartingale_by_enumeration():
    """Two cohorts of 2 canary and 1 stable coin flips each; the second's centers are the first's means."""
    p = 0.3
    cohort = [
        (p ** sum(c) * (1 - p) ** (2 - sum(c)) * p**s * (1 - p) ** (1 - s), c, s)
        for *c, s in itertools.product((0, 1), repeat=3)
    ]
    expected = 0.0
    for (one, c1, s1), (two, c2, s2) in itertools.product(cohort, cohort):
        test = Contrast().add(moments(np.array(c1)), moments(np.array([s1])), (0.5, 0.5))
        test = test.add(moments(np.array(c2)), moments(np.array([s2])))
        expected += one * two * math.exp(test.log_e_below(width=1.0))
    assert expected <= 1 + 1e-9


def test_a_mixture_of_one_bounded_sum_expects_at_most_one():
    for p in (0.1, 0.5, 0.9):
        expected = sum(
            chance * math.exp(empirical_bernstein(x - p, (x - 0.5) ** 2, 1.0))
            for x, chance in ((0, 1 - p), (1, p))
        )
        assert expected <= 1


def test_the_half_normal_mixture_is_the_integral_it_says():
    total, variance, weight = 7.0, 12.0, 30.0
    deviation = math.sqrt(weight / 50 / variance)
    bets = np.linspace(0, 12 * deviation, 200_001)
    density = 2 / (deviation * math.sqrt(2 * math.pi)) * np.exp(-(bets**2) / (2 * deviation**2))
    integral = np.trapezoid(density * np.exp(bets * total - bets**2 * variance / 2), bets)
    assert normal_mixture(total, variance, weight) == pytest.approx(math.log(integral), abs=1e-6)


values = st.floats(-1e6, 1e6)
samples = st.lists(values, min_size=1, max_size=6).map(lambda sample: moments(np.array(sample)))


@given(st.lists(samples, min_size=1, max_size=5), st.randoms())
def test_moments_add_up_in_any_order(parts: list[Moments], random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    one, other = sum(parts, Moments()), sum(shuffled, Moments())
    assert one.n == other.n
    assert one.mean == pytest.approx(other.mean, rel=1e-9, abs=1e-6)
    assert one.m2 == pytest.approx(other.m2, rel=1e-6, abs=1e-3)


def test_a_cohort_is_the_same_evidence_whether_it_came_in_one_piece_or_in_many():
    rng = np.random.default_rng(4)
    whole = [Episodes(9, moments(normal(rng, 9))), Episodes(30, moments(normal(rng, 30)))]
    a, b = OpenCohorts(2).add(0, *whole), OpenCohorts(2)
    for episodes in (Episodes(4), Episodes(5, whole[0].returns)):
        b = b.add(0, episodes, Episodes())
    b = b.add(0, Episodes(), whole[1])
    assert a.close(3)[1] == b.close(3)[1]


def test_only_cohorts_that_are_old_enough_are_judged_and_late_rewards_are_dropped():
    some = Episodes(1, Moments(1, 5.0))
    cohorts = OpenCohorts(horizon=2).add(0, some, some).add(1, some, some)
    cohorts, due = cohorts.close(3)
    assert [cohort.window for cohort in due] == [0]
    assert cohorts.add(0, some, some) == cohorts
    assert cohorts.close(4)[1] == (Cohort(1, some, some),)


def test_bounds_and_evidence_agree():
    rng = np.random.default_rng(5)
    test = Contrast()
    for _ in range(20):
        test = test.add(moments(rng.uniform(0, 0.5, 5)), moments(rng.uniform(0.2, 0.8, 20)))
    for width in (None, 1.0):
        low, high = test.interval(ALPHA, width=width)
        assert low < -0.25 < high < 0
        assert test.log_e_below(margin=-high, width=width) == pytest.approx(math.log(1 / ALPHA), abs=0.1)
        assert test.log_e_above(margin=-low, width=width) == pytest.approx(math.log(1 / ALPHA), abs=0.1)


def test_a_fixed_baseline_is_a_stable_arm_without_variance():
    rng = np.random.default_rng(6)
    test = Contrast()
    for _ in range(10):
        test = test.add(moments(rng.normal(90, 5, 10)), 100.0)
    assert test.difference() == pytest.approx(-10, abs=2)
    assert test.log_e_below() > math.log(1 / ALPHA)
    assert test.log_e_below(margin=20.0) < 0


degenerate = st.builds(
    Moments,
    st.sampled_from([0, 1, 2, 10**9]),
    st.sampled_from([0.0, 1.0, -1e9, 1e150, math.inf, math.nan]),
    st.sampled_from([0.0, 1.0, 1e100, math.nan]),
)


@given(
    st.lists(st.tuples(degenerate, st.one_of(degenerate, st.sampled_from([0.0, 1e9, math.nan]))), max_size=4),
    st.sampled_from([None, 1.0, 1e-9]),
)
def test_nothing_that_comes_in_gives_nan_or_an_error(
    cohorts: list[tuple[Moments, Moments | float]], width: float | None
):
    test = Contrast()
    for canary, stable in cohorts:
        test = test.add(canary, stable)
    assert not math.isnan(test.log_e_below(width=width))
    assert not math.isnan(test.log_e_above(width=width))
    low, high = test.interval(0.01, width=width)
    assert low <= high


def test_episodes_that_are_all_equal_are_evidence_only_of_what_they_show():
    same = Contrast().add(Moments(30, 500.0), Moments(300, 500.0))
    assert same.log_e_below() <= 0
    assert same.interval(ALPHA) == (0.0, 0.0)
    worse = Contrast().add(Moments(30, 499.0), Moments(300, 500.0))
    assert worse.log_e_below() > math.log(1 / ALPHA)
    assert worse.log_e_below(margin=5.0) < 0
    against_a_number = Contrast().add(Moments(30, 499.0), 500.0)
    assert against_a_number.log_e_below() == 0.0


@given(st.lists(st.tuples(samples, samples), max_size=4))
def test_the_state_survives_json(cohorts: list[tuple[Moments, Moments]]):
    test = Contrast()
    for canary, stable in cohorts:
        test = test.add(canary, stable)
    assert load(Contrast, dump(test)) == test
