"""Episodes of an evaluation as shares and means, each with the error that so few episodes leave."""

import numpy as np
import pytest

from ratchet.policies import SpaceSpec, flatten_observation
from ratchet.policies.evaluated import MOST_OUTPUTS, evaluated_actions

TWO_WAYS = SpaceSpec(kind="Discrete", dtype="int64", n=2, start=-1)
ARM = SpaceSpec(kind="Box", shape=(2,), low=-1.0, high=1.0)


def played(space: SpaceSpec, episodes: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Lengths, sums and squares of episodes, each with the actions that the environment took."""
    flat = [flatten_observation(space, actions).astype(float) for actions in episodes]
    return (
        np.array([len(one) for one in flat]),
        np.array([one.sum(axis=0) for one in flat]),
        np.array([(one**2).sum(axis=0) for one in flat]),
    )


def test_moments_of_continuous_actions_are_those_of_all_decisions():
    rng = np.random.default_rng(0)
    episodes = [rng.normal([0.1, -3.0], [1.0, 0.2], (n, 2)).astype(np.float32) for n in (5, 30, 9)]
    found = evaluated_actions(ARM, True, *played(ARM, episodes))
    together = np.concatenate(episodes)
    assert found is not None
    assert (found.episodes, found.decisions, found.counts) == (3, 44, ())
    assert found.mean == pytest.approx(together.mean(axis=0), rel=1e-4)
    assert found.deviation == pytest.approx(together.std(axis=0), rel=1e-3)


@pytest.mark.parametrize(
    ("space", "episodes", "counts"),
    [
        (TWO_WAYS, [[-1, 0, 0], [-1]], (2, 2)),
        (
            SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3)),
            [[[0, 2], [1, 2]], [[0, 0]]],
            (2, 1, 1, 0, 2),
        ),
        (SpaceSpec(kind="MultiBinary", dtype="int8", shape=(2,)), [[[1, 1], [0, 1]], [[0, 0]]], (1, 2)),
    ],
)
def test_discrete_actions_are_counted_by_output_as_the_server_counts_them(
    space: SpaceSpec, episodes: list[list[int]], counts: tuple[int, ...]
):
    taken = [np.array(one, space.dtype) for one in episodes]
    found = evaluated_actions(space, False, *played(space, taken))
    assert found is not None
    assert (found.counts, found.deterministic) == (counts, False)


@pytest.mark.parametrize("lengths", [(20, 20), (5, 60)], ids=["alike", "unlike"])
def test_the_error_is_the_deviation_of_the_share_over_many_evaluations(lengths: tuple[int, int]):
    rng = np.random.default_rng(1)
    shares, errors = [], []
    for _ in range(1_000):
        # Each episode leans its own way: counted by decisions the error would be a third of it.
        leans, sizes = rng.beta(1, 1, 50), rng.integers(lengths[0], lengths[1] + 1, 50)
        first = rng.binomial(sizes, leans)
        sums = np.stack([first, sizes - first], axis=1).astype(float)
        found = evaluated_actions(TWO_WAYS, True, sizes, sums, sums)
        assert found is not None
        shares.append(found.counts[0] / found.decisions)
        errors.append(found.error[0])
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.1)


def test_nothing_is_said_of_one_episode_of_no_numbers_and_of_very_many_outputs():
    many = SpaceSpec(kind="Discrete", dtype="int64", n=MOST_OUTPUTS + 1)
    good = np.ones((2, 2))
    assert evaluated_actions(TWO_WAYS, True, np.array([2, 2]), good, good) is not None
    assert evaluated_actions(TWO_WAYS, True, np.array([2]), good[:1], good[:1]) is None
    assert evaluated_actions(ARM, True, np.array([2, 2]), good, good * np.nan) is None
    wide = np.ones((2, MOST_OUTPUTS + 1))
    assert evaluated_actions(many, True, np.full(2, MOST_OUTPUTS + 1), wide, wide) is None
    assert evaluated_actions(TWO_WAYS, True, np.zeros(2, int), np.zeros((2, 2)), np.zeros((2, 2))) is None
