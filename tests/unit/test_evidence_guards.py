"""Guards: latency and drift under peeking, the four verdicts and their records."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ratchet_operator.rollout.counting import reference_of

from ratchet.evidence import (
    Cohort,
    Count,
    Decision,
    Drift,
    DriftGuard,
    Episodes,
    LatencyAgainstStable,
    LatencyLimit,
    Moments,
    RateAgainstStable,
    RateLimit,
    RateRatio,
    Reference,
    ReturnGuard,
    Returns,
    Shift,
    ShiftGuard,
    TripWire,
    Verdict,
    dump,
    load,
    source_down,
    split,
)
from ratchet.evidence.drift import student
from ratchet.evidence.latency import LatencyRatio, nearest_edge
from ratchet.policies import SpaceSpec
from ratchet.policies.evaluated import evaluated_actions

RUNS = 1_000
ALPHA = BETA = 0.05
MOST_FALSE = 80  # a chance of 5% gives more than 80 in 1,000 once in 10,000 times
EDGES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)


def histogram(seconds: np.ndarray) -> list[int]:
    return np.bincount(np.searchsorted(EDGES, seconds), minlength=len(EDGES) + 1).tolist()


def latencies(rng: np.random.Generator, n: int, slower: float = 1.0) -> list[int]:
    return histogram(slower * 0.003 * rng.lognormal(0, 0.6, n))


def peeked_latency(rng: np.random.Generator, quantile: float, slower: float, seconds: int) -> bool:
    state = LatencyRatio(quantile, 1.0, EDGES, RateRatio(1.0))
    for second in range(seconds):
        load_of_the_hour = 1 + 0.5 * math.sin(second / 5)
        state = state.add(latencies(rng, 20, slower * load_of_the_hour), latencies(rng, 80, load_of_the_hour))
        if state.ratio.log_e_above >= math.log(1 / ALPHA):
            return True
    return False


def test_equal_latencies_stay_within_alpha_while_both_move():
    rng = np.random.default_rng(1)
    assert sum(peeked_latency(rng, 0.9, 1.0, 40) for _ in range(RUNS)) < MOST_FALSE


def test_a_canary_twice_as_slow_is_seen():
    rng = np.random.default_rng(2)
    assert sum(peeked_latency(rng, 0.95, 2.0, 40) for _ in range(100)) > 95


def test_the_edge_that_is_looked_at_is_near_the_quantile_however_much_was_seen():
    # All in one bucket: below its upper edge everything would be slow.
    assert [nearest_edge([0, 0, n, 0, 0], 0.99) for n in (50, 10**4, 10**7)] == [2, 2, 2]
    assert nearest_edge([0, 0, 9_890, 110, 0], 0.99) == 2  # 1.1% are above it and none above the next
    assert nearest_edge([0, 0, 9_500, 500, 0], 0.99) == 3
    assert nearest_edge([0, 0, 9_700, 210, 90], 0.99) == 3
    assert nearest_edge([], 0.99) == 0


@pytest.mark.parametrize("n", [10, 1_000])
def test_a_canary_twice_as_slow_is_seen_where_all_answers_take_as_long(n: int):
    guard = LatencyAgainstStable("latency", 0.99, 1.5, EDGES)
    state = guard.start()
    for _ in range(20):
        state = state.add([0, 0, 0, n, 0, 0, 0, 0], [0, 10 * n, 0, 0, 0, 0, 0, 0])
    assert guard.judge(state, ALPHA, BETA).verdict is Verdict.FAIL


def test_a_limit_on_a_quantile_is_a_limit_on_the_share_above_an_edge():
    guard = LatencyLimit("latency", 0.99, 0.016, EDGES)
    slow, fast = [0, 900, 0, 0, 50, 30, 20, 0], [0, 9_990, 0, 0, 10, 0, 0, 0]
    assert guard.judge(slow, ALPHA, BETA).verdict is Verdict.FAIL
    assert guard.judge(slow, ALPHA, BETA).canary == 0.064
    kept = guard.judge(fast, ALPHA, BETA)
    assert (kept.verdict, kept.proven) == (Verdict.PASS, True)


def peeked_drift(rng: np.random.Generator, canary: list[float], stable: list[float], allowed: float) -> bool:
    state = Drift()
    for _ in range(40):
        state = state.add(rng.multinomial(5, canary).tolist(), rng.multinomial(45, stable).tolist())
        if state.log_e_above(allowed) >= math.log(1 / ALPHA):
            return True
    return False


@pytest.mark.parametrize("canary", [[0.25, 0.25, 0.25, 0.25], [0.45, 0.25, 0.15, 0.15]])
def test_actions_within_the_allowed_distance_stay_within_alpha(canary: list[float]):
    rng = np.random.default_rng(3)
    allowed = sum(max(0, share - 0.25) for share in canary)
    assert sum(peeked_drift(rng, canary, [0.25] * 4, allowed) for _ in range(RUNS)) < MOST_FALSE


def test_a_policy_that_always_does_the_same_is_seen_against_stable_and_against_training():
    rng = np.random.default_rng(4)
    assert peeked_drift(rng, [1, 0, 0, 0], [0.25] * 4, 0.2)
    state = Drift(reference=(0.25,) * 4)
    for _ in range(10):
        state = state.add([20, 0, 0, 0])
    assert DriftGuard("drift", 0.2).judge(state, ALPHA, BETA).verdict is Verdict.FAIL
    one_long_episode = DriftGuard("drift", 0.2, decisions_per_episode=200).judge(state, ALPHA, BETA)
    assert one_long_episode.verdict is Verdict.NOT_ENOUGH_EVIDENCE


TWO_WAYS = SpaceSpec(kind="Discrete", dtype="int64", n=2)
LENGTH, EPISODES = 20, 20


def played(rng: np.random.Generator, episodes: int) -> np.ndarray:
    """How often each action was taken in each episode, of which each leans its own way."""
    return rng.multinomial(LENGTH, rng.dirichlet([0.5, 0.5], episodes))


def evaluated(rng: np.random.Generator) -> Reference:
    taken = played(rng, EPISODES).astype(float)
    found = evaluated_actions(TWO_WAYS, True, np.full(EPISODES, LENGTH), taken, taken)
    assert found is not None
    return reference_of(found)


def peeked_training(rng: np.random.Generator, reference: Reference, canary: np.ndarray) -> bool:
    """Two thousand episodes of the canary, at fifty a second; as much room as the guard would give."""
    state, slack = Drift(reference=reference.shares), sum(reference.slack(ALPHA / 2)) / 2
    for second in range(40):
        state = state.add(canary[50 * second : 50 * (second + 1)].sum(axis=0).tolist())
        if state.log_e_above(0.05 + slack, LENGTH) >= math.log(2 / ALPHA):
            return True
    return False


def test_a_canary_that_acts_as_in_an_evaluation_of_few_episodes_stays_within_alpha():
    rng = np.random.default_rng(11)
    found = [peeked_training(rng, evaluated(rng), played(rng, 2_000)) for _ in range(RUNS)]
    assert sum(found) < MOST_FALSE


def test_an_evaluation_of_few_episodes_is_not_taken_for_the_truth():
    rng = np.random.default_rng(12)
    certain = [replace(evaluated(rng), error=()) for _ in range(50)]
    assert sum(peeked_training(rng, one, played(rng, 2_000)) for one in certain) > 15


def test_a_canary_that_acts_otherwise_than_in_its_evaluation_is_seen():
    rng = np.random.default_rng(13)
    stuck = np.tile([LENGTH, 0], (2_000, 1))
    assert all(peeked_training(rng, evaluated(rng), stuck) for _ in range(50))


def leaning(rng: np.random.Generator, episodes: int, by: float) -> np.ndarray:
    """(episodes, decisions, components); of each component episodes differ as much as decisions do."""
    return by + rng.normal(0, 1, (episodes, 1, 2)) + rng.normal(0, 1, (episodes, LENGTH, 2))


def moved_from_training(rng: np.random.Generator, canary: np.ndarray) -> bool:
    taken = leaning(rng, EPISODES, 0.0)
    sums, squares, lengths = taken.sum(axis=1), (taken**2).sum(axis=1), np.full(EPISODES, LENGTH)
    found = evaluated_actions(SpaceSpec(kind="Box", shape=(2,)), True, lengths, sums, squares)
    assert found is not None
    reference = reference_of(found)
    guard = ShiftGuard("drift", 0.1, LENGTH, slack=reference.slack(ALPHA / 2), of_training=True)
    state = Shift()
    for second in range(40):
        acted = canary[5 * second : 5 * (second + 1)].reshape(-1, 2)
        arm = zip(acted.mean(axis=0), len(acted) * acted.var(axis=0), strict=True)
        state = state.add([Moments(len(acted), float(mean), float(m2)) for mean, m2 in arm], reference.arm)
        if guard.judge(state, ALPHA / 2, BETA).verdict is Verdict.FAIL:
            return True
    return False


def test_continuous_actions_as_in_an_evaluation_of_few_episodes_stay_within_alpha():
    rng = np.random.default_rng(14)
    # At the very bound: a tenth of the deviation, which is the root of two.
    found = [moved_from_training(rng, leaning(rng, 200, 0.1 * 2**0.5)) for _ in range(RUNS // 2)]
    assert sum(found) < MOST_FALSE / 2


@pytest.mark.parametrize("stuck", [False, True], ids=["another mean", "always the same"])
def test_continuous_actions_otherwise_than_in_an_evaluation_are_seen(stuck: bool):
    rng = np.random.default_rng(15)
    for _ in range(20):
        # At the edge of its bounds a policy has no variance, and is no less wrong.
        canary = np.full((200, LENGTH, 2), 3.0) if stuck else leaning(rng, 200, 3.0)
        assert moved_from_training(rng, canary)


def test_what_never_moved_in_an_evaluation_may_be_rounded_otherwise():
    reference = Reference(20, 20.0, True, mean=(0.7,), deviation=(0.0,), error=(0.0,))
    state = Shift()
    for _ in range(40):
        state = state.add([Moments(1_000, 0.7004, 0.0)], reference.arm)
    assert ShiftGuard("drift", 0.5, 20).judge(state, ALPHA, BETA).verdict is Verdict.PASS


@pytest.mark.parametrize(("mean", "verdict"), [(0.8, Verdict.PASS), (1.6, Verdict.FAIL)])
def test_a_mean_may_move_by_a_part_of_the_deviation_that_it_had_in_training(mean: float, verdict: Verdict):
    reference = Reference(20, 20.0, True, mean=(0.0,), deviation=(2.0,), error=(0.0,))
    state = Shift()
    for _ in range(40):
        state = state.add([Moments(1_000, mean, 4_000.0)], reference.arm)
    assert ShiftGuard("drift", 0.5, 20).judge(state, ALPHA, BETA).verdict is verdict


@pytest.mark.parametrize(
    ("quantile", "freedom", "value"),
    [(0.975, 3, 3.182), (0.995, 4, 4.604), (0.999, 19, 3.579), (0.9995, 19, 3.883), (0.9999, 99, 3.863)],
)
def test_quantiles_of_students_t_are_never_too_small(quantile: float, freedom: int, value: float):
    assert 0.999 * value < student(quantile, freedom) < 1.1 * value


def moved(rng: np.random.Generator, by: float, allowed: float, seconds: int) -> bool:
    """Two components of which the second moves; each second 3 canary actions and 17 stable ones."""
    state = Shift()
    for _ in range(seconds):
        arms = []
        for n, shift in ((3, by), (17, 0.0)):
            sample = rng.normal([0.0, shift], [1.0, 5.0], (n, 2))
            arms.append(
                [
                    Moments(n, float(mean), float(m2))
                    for mean, m2 in zip(sample.mean(0), n * sample.var(0), strict=True)
                ]
            )
        state = state.add(*arms)
        if state.log_e_above(allowed) >= math.log(1 / ALPHA):
            return True
    return False


def test_continuous_actions_that_moved_as_far_as_allowed_stay_within_alpha():
    rng = np.random.default_rng(7)
    assert sum(moved(rng, 2.5, 0.5, 40) for _ in range(RUNS)) < MOST_FALSE


def test_continuous_actions_that_moved_further_are_seen():
    rng = np.random.default_rng(8)
    assert sum(moved(rng, -7.5, 0.5, 40) for _ in range(100)) > 95
    never = ShiftGuard("shift").judge(Shift(), ALPHA, BETA)
    assert (never.verdict, never.canary) == (Verdict.NOT_ENOUGH_EVIDENCE, 0.0)


def errors(canary: int, of: int, stable: int, of_stable: int) -> RateRatio:
    return RateRatio(1.5).add(Count(of, canary), Count(of_stable, stable))


def test_the_four_verdicts():
    guard = RateAgainstStable("errors", "errors", 1.5, minimum=1_000)
    assert guard.judge(errors(50, 1_000, 45, 9_000), ALPHA, BETA).verdict is Verdict.FAIL
    reached = guard.judge(errors(5, 1_000, 45, 9_000), ALPHA, BETA)
    assert (reached.verdict, reached.proven) == (Verdict.PASS, False)
    proven = guard.judge(errors(500, 100_000, 4_500, 900_000), ALPHA, BETA)
    assert (proven.verdict, proven.proven) == (Verdict.PASS, True)
    assert guard.judge(errors(5, 999, 45, 9_000), ALPHA, BETA).verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert guard.judge(errors(9, 1_000, 45, 9_000), ALPHA, BETA).verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert source_down("errors", "no pod answers").verdict is Verdict.SOURCE_DOWN


def test_a_rate_that_is_tolerated_does_not_fail_though_stable_has_none():
    strict = RateAgainstStable("errors", "errors", 1.5)
    tolerant = RateAgainstStable("errors", "errors", 1.5, tolerated=0.001)
    few = Count(100_000, 10), Count(900_000, 0)
    assert strict.judge(strict.start().add(*few), ALPHA, BETA).verdict is Verdict.FAIL
    decision = tolerant.judge(tolerant.start().add(*few), ALPHA, BETA)
    assert (decision.verdict, decision.proven) == (Verdict.PASS, True)


@pytest.mark.parametrize("per_second", [5, 500])
def test_a_canary_that_stalls_once_is_not_condemned_and_one_that_fails_on_is(per_second: int):
    guard = RateAgainstStable("fallbacks", "fallbacks", 1.5, tolerated=0.01)
    well = Count(per_second, 0), Count(9 * per_second, 0)
    stalled = Count(per_second, per_second), Count(9 * per_second, 0)
    state = guard.start().add(*well).add(*stalled)
    assert guard.judge(state, ALPHA, BETA).verdict is Verdict.NOT_ENOUGH_EVIDENCE
    for _ in range(200):
        assert guard.judge(state, ALPHA, BETA).verdict is not Verdict.FAIL
        state = state.add(*well)
    assert guard.judge(state, ALPHA, BETA).verdict is Verdict.PASS
    state = guard.start().add(*stalled).add(*stalled).add(*stalled)
    assert guard.judge(state, ALPHA, BETA).verdict is Verdict.FAIL


def test_a_canary_whose_answers_are_slow_in_one_second_is_not_condemned():
    guard = LatencyAgainstStable("latency", 0.99, 1.2, EDGES)
    well, stalled = [0, 100, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 100]
    stable = [0, 900, 0, 0, 0, 0, 0, 0]
    state = guard.start().add(well, stable).add(stalled, stable)
    assert guard.judge(state, ALPHA, BETA).verdict is Verdict.NOT_ENOUGH_EVIDENCE
    for _ in range(2):
        state = state.add(stalled, stable)
    assert guard.judge(state, ALPHA, BETA).verdict is Verdict.FAIL


def returns(canary: float, stable: float, *, reported: float = 1.0) -> Returns:
    rng, state = np.random.default_rng(5), Returns()
    for window in range(20):
        arms = []
        for mean, n, share in ((canary, 10, reported), (stable, 40, 1.0)):
            sample = rng.normal(mean, 10, int(n * share))
            moments = Moments(len(sample), float(sample.mean()), float(((sample - sample.mean()) ** 2).sum()))
            arms.append(Episodes(n, moments))
        state = state.add(Cohort(window, *arms))
    return state


@pytest.mark.parametrize(
    ("canary", "stable", "verdict"),
    [(80, 100, "Fail"), (98, 100, "Pass"), (-120, -100, "Fail"), (-102, -100, "Pass"), (5, 0, "Pass")],
)
def test_a_relative_drop_is_a_share_of_the_size_of_stable_whatever_its_sign(
    canary: float, stable: float, verdict: str
):
    guard = ReturnGuard("return", relative_drop=0.1)
    assert guard.judge(returns(canary, stable), ALPHA, BETA).verdict == verdict


def test_returns_of_a_fifth_of_the_episodes_are_not_compared_with_returns_of_all():
    decision = ReturnGuard("return", drop=1.0).judge(returns(50, 100, reported=0.2), ALPHA, BETA)
    assert decision.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "20% of the canary's episodes" in decision.sentence


def test_a_record_holds_the_difference_that_its_bounds_are_of():
    decision = ReturnGuard("return", relative_drop=0.1).judge(returns(88.0, 100.0), ALPHA, BETA)

    assert decision.estimate == pytest.approx(-12.0, abs=1.0)
    assert decision.low is not None
    assert decision.high is not None
    assert decision.low < decision.estimate < decision.high


def test_a_trip_wire_needs_no_statistics():
    wire = TripWire("nan", "answer with NaN", "answers with NaN")
    assert wire.judge(1, 1).verdict is Verdict.FAIL
    assert wire.judge(0, 100).verdict is Verdict.PASS
    assert wire.judge(0, 0).verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert wire.judge(1, 0).sentence == "1 answer with NaN in 0 canary answers, 0 allowed."
    assert wire.judge(2, 9).sentence == "2 answers with NaN in 9 canary answers, 0 allowed."


def test_shares_of_the_false_rollback_rate_sum_to_it():
    shares = split(0.05, {"errors": 2, "latency": 1, "return": 1})
    assert shares == pytest.approx({"errors": 0.025, "latency": 0.0125, "return": 0.0125})


big = st.integers(0, 10**12)
bins = st.lists(big, min_size=8, max_size=8)


@given(big, big, big, big, bins, bins)
def test_records_are_finite_json_whatever_came_in(
    a: int, b: int, c: int, d: int, one: list[int], other: list[int]
):
    errors = RateAgainstStable("errors", "errors", 1.5, 0.001)
    latency = LatencyAgainstStable("latency", 0.99, 1.2, EDGES)
    moments = Returns().add(Cohort(0, Episodes(a, Moments(b, float(c), float(d))), Episodes(c)))
    decisions = [
        errors.judge(errors.start().add(Count(a, b), Count(c, d)), ALPHA, BETA),
        RateLimit("errors", "errors", 0.01).judge(Count(a, b), ALPHA, BETA),
        LatencyLimit("latency", 0.99, 0.01, EDGES).judge(one, ALPHA, BETA),
        latency.judge(latency.start().add(one, other).add(other, one), ALPHA, BETA),
        DriftGuard("drift").judge(Drift().add(one, other).add(other, one), ALPHA, BETA),
        ReturnGuard("return").judge(moments, ALPHA, BETA),
    ]
    for decision in decisions:
        written = json.loads(dump(decision), parse_constant=pytest.fail)
        assert load(Decision, json.dumps(written)) == decision


def test_states_survive_json_in_the_middle_of_a_rollout():
    rng = np.random.default_rng(6)
    latency, drift = LatencyAgainstStable("latency", 0.99, 1.2, EDGES).start(), Drift()
    for _ in range(5):
        latency = latency.add(latencies(rng, 10), latencies(rng, 50))
        drift = drift.add(rng.multinomial(5, [0.5, 0.5]).tolist(), rng.multinomial(50, [0.4, 0.6]).tolist())
    for state in (latency, drift, returns(90, 100)):
        assert load(type(state), dump(state)) == state
