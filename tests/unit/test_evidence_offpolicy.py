"""Off-policy estimators: exact on cases small enough to enumerate, and covering what they should."""

import itertools
import math

import numpy as np
import pytest

from ratchet.evidence.offpolicy import doubly_robust, ips, snips

LOGGED, TARGET, REWARD = (0.8, 0.2), (0.3, 0.7), (1.0, 3.0)
TRUTH = 0.3 * 1.0 + 0.7 * 3.0


def columns(actions: tuple[int, ...] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logged, target, reward = (np.array(of)[np.array(actions)] for of in (LOGGED, TARGET, REWARD))
    return logged, target, reward


def expected(estimator: object, n: int) -> float:
    """Expectation over all logs of n decisions of two actions."""
    total = 0.0
    for actions in itertools.product((0, 1), repeat=n):
        chance = math.prod(LOGGED[action] for action in actions)
        total += chance * estimator(*columns(actions)).value  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
    return total


def test_inverse_propensities_are_unbiased_by_enumeration():
    assert expected(ips, 3) == pytest.approx(TRUTH)


@pytest.mark.parametrize("model", [(1.0, 3.0), (0.0, 0.0), (5.0, -2.0)])
def test_a_doubly_robust_estimate_is_unbiased_whatever_its_model(model: tuple[float, float]):
    mean = TARGET[0] * model[0] + TARGET[1] * model[1]

    def estimate(logged: np.ndarray, target: np.ndarray, reward: np.ndarray):
        predicted = np.where(reward == REWARD[0], *model)
        return doubly_robust(logged, target, reward, predicted, np.full(reward.size, mean))

    assert expected(estimate, 3) == pytest.approx(TRUTH)


def test_a_right_model_leaves_no_variance():
    logged, target, reward = columns((0, 0, 1, 0))
    estimate = doubly_robust(logged, target, reward, reward, np.full(4, TRUTH))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((TRUTH, TRUTH, TRUTH))


def test_self_normalised_estimates_stay_within_the_rewards_seen():
    for actions in itertools.product((0, 1), repeat=4):
        assert 1.0 <= snips(*columns(actions)).value <= 3.0
    same = np.full(5, 0.25)
    assert snips(same, same, np.arange(5.0)).value == pytest.approx(2.0)


@pytest.mark.parametrize("estimator", [ips, snips])
def test_intervals_cover_the_truth_as_often_as_they_say(estimator: object):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1_000):
        estimate = estimator(*columns(rng.binomial(1, LOGGED[1], 400)))  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
        covered += estimate.low <= TRUTH <= estimate.high
    assert 915 < covered < 980  # 950 +- 4 standard deviations and what 400 decisions lack of a normal law


def test_effective_size_falls_where_the_policies_differ():
    logged, target, reward = columns((0, 0, 0, 1))
    assert ips(logged, logged, reward).effective == pytest.approx(4)
    assert ips(logged, target, reward).effective < 2


@pytest.mark.parametrize(
    ("logged", "target", "reward"),
    [([], [], []), ([0.0], [0.5], [1.0]), ([0.5], [1.5], [1.0]), ([0.5, 0.5], [0.5], [1.0])],
)
def test_columns_that_make_no_sense_are_refused(
    logged: list[float], target: list[float], reward: list[float]
):
    with pytest.raises(ValueError, match=r"propensity|columns"):
        ips(np.array(logged), np.array(target), np.array(reward))


def test_a_target_that_takes_none_of_the_logged_actions_has_no_self_normalised_value():
    with pytest.raises(ValueError, match="none of the logged actions"):
        snips(np.array([0.5]), np.array([0.0]), np.array([1.0]))
