"""Advantages are what their definition says: a mixture of n-step advantages, of each trajectory alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ratchet_trainer.algorithms.ppo import advantages, explained_variance

numbers = st.floats(-10, 10, width=32)
fractions = st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0])


def by_definition(t, reward, value, after, terminated, truncated, valid, gamma, lam):
    """Schulman et al. 2015, equation 16, of the steps of one environment; a sum, for it has an end."""
    if not valid[t]:
        return 0.0
    last = t
    while not (terminated[last] or truncated[last]) and last + 1 < len(reward) and valid[last + 1]:
        last += 1

    def of_n_steps(n):
        returns = sum(gamma**k * float(reward[t + k]) for k in range(n))
        bootstrap = 0.0 if terminated[t + n - 1] else gamma**n * float(after[t + n - 1])
        return returns + bootstrap - float(value[t])

    length = last - t + 1
    mixture = sum((1 - lam) * lam ** (n - 1) * of_n_steps(n) for n in range(1, length))
    return mixture + lam ** (length - 1) * of_n_steps(length)


@st.composite
def trajectories(draw):
    """Columns of (T, N); the value after a step is the next observation's, or a truncated step's own."""
    grid = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    reward, final = (
        draw(hnp.arrays(np.float32, grid, elements=numbers)),
        draw(hnp.arrays(np.float32, grid, elements=numbers)),
    )
    values = draw(hnp.arrays(np.float32, (grid[0] + 1, grid[1]), elements=numbers))
    valid, terminated, truncated = (draw(hnp.arrays(bool, grid)) for _ in range(3))
    terminated, truncated = terminated & valid, truncated & valid
    after = np.where(truncated, final, values[1:])
    return reward, values[:-1], after, terminated, truncated, valid


@given(trajectories(), fractions, fractions)
def test_advantages_are_their_definition(columns, gamma, lam):
    advantage, target = advantages(*columns, gamma, lam)

    expected = np.array(
        [
            [by_definition(t, *(column[:, n] for column in columns), gamma, lam) for n in range(width)]
            for width in [advantage.shape[1]]
            for t in range(len(advantage))
        ]
    )
    assert advantage.dtype == np.float32
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(target, expected + columns[1], rtol=1e-4, atol=1e-3)


def test_lambda_one_is_the_discounted_return():
    ones, no = np.ones((4, 1), np.float32), np.zeros((4, 1), bool)
    end = np.array([[False], [False], [False], [True]])

    _, target = advantages(ones, ones * 7, ones * 7, end, no, ~no, 0.5, 1.0)

    np.testing.assert_allclose(target[:, 0], [1.875, 1.75, 1.5, 1.0])


def test_environments_do_not_mix():
    rng = np.random.default_rng(0)
    reward, value, after = rng.standard_normal((3, 5, 2)).astype(np.float32)
    no = np.zeros((5, 2), bool)
    both, _ = advantages(reward, value, after, no, no, ~no, 0.9, 0.8)

    reward[:, 1] += 1.0
    changed, _ = advantages(reward, value, after, no, no, ~no, 0.9, 0.8)

    np.testing.assert_array_equal(both[:, 0], changed[:, 0])
    assert (both[:, 1] != changed[:, 1]).all()


@pytest.mark.parametrize(
    ("value", "expected"), [([1, 2, 3], 1.0), ([2, 2, 2], 0.0), ([3, 2, 1], -3.0), ([11, 12, 13], 1.0)]
)
def test_explained_variance_of_a_known_prediction(value, expected):
    target = np.array([1, 2, 3], np.float32)

    assert explained_variance(np.array(value, np.float32), target) == pytest.approx(expected)


def test_explained_variance_of_equal_targets_is_zero():
    assert explained_variance(np.array([1, 2], np.float32), np.array([5, 5], np.float32)) == 0.0
