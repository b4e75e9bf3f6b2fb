"""Fragments of a batch lie side by side, whatever their order of arrival; alien ones are refused."""

from dataclasses import fields

import numpy as np
import pytest
from fragments import rollout
from hypothesis import given
from hypothesis import strategies as st
from ratchet_trainer.algorithms.batch import check, join

from ratchet.experience import CorruptFragment, Fragment
from ratchet.policies import EnvironmentSpec, SpaceSpec

SPEC = EnvironmentSpec(
    observation=SpaceSpec(kind="Box", shape=(4,)), action=SpaceSpec(kind="Discrete", n=2, dtype="int64")
)


def numbered(sequence: int, worker: str = "pool/0", incarnation: str = "a1b2") -> Fragment:
    """Rewards tell the fragment, the time and the environment: sequence * 100 + t * 10 + n."""
    fragment = rollout(sequence=sequence, worker=worker, incarnation=incarnation)
    reward = sequence * 100 + np.array([[0, 1], [10, 11], [20, 21]], np.float32)
    final = np.full((1, 4), sequence, np.float32)
    return Fragment(fragment.header, {**fragment.columns, "reward": reward, "final_observation": final})


def altered(**columns: np.ndarray) -> Fragment:
    fragment = rollout()
    return Fragment(fragment.header, {**fragment.columns, **columns})


FRAGMENTS = [numbered(2), numbered(1), numbered(3, worker="pool/1"), numbered(1, "pool/1", "c3d4")]


@given(st.permutations(FRAGMENTS))
def test_join_does_not_depend_on_the_order_of_arrival(arrived):
    first, other = join(FRAGMENTS, SPEC), join(arrived, SPEC)

    for field in fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(other, field.name))


def test_join_keeps_time_and_lays_environments_side_by_side():
    batch = join([numbered(2), numbered(1)], SPEC)

    np.testing.assert_array_equal(
        batch.reward, [[100, 101, 200, 201], [110, 111, 210, 211], [120, 121, 220, 221]]
    )
    assert batch.sources == (("a1b2", 2), ("a1b2", 2))
    assert batch.action.shape == (3, 4, 1)
    assert batch.steps == 12


def test_join_says_which_step_a_final_observation_follows():
    batch = join([numbered(2), numbered(1)], SPEC)

    np.testing.assert_array_equal(batch.final_at, np.flatnonzero(batch.truncated.ravel()))
    np.testing.assert_array_equal(batch.reward.ravel()[batch.final_at] // 100, batch.final_observation[:, 0])


def test_join_of_fragments_with_other_numbers_of_environments():
    narrow = rollout(worker="pool/1", n=3)
    columns = {name: column[:, :1] for name, column in narrow.columns.items() if column.ndim > 1}
    columns["final_observation"] = np.empty((0, 4), np.float32)
    columns["last_observation"] = narrow.columns["last_observation"][:1]

    batch = join([Fragment(narrow.header, {**narrow.columns, **columns}), numbered(1)], SPEC)

    assert batch.reward.shape == (3, 3)
    np.testing.assert_array_equal(batch.final_at, [1 * 3 + 1])


def test_join_flattens_as_a_network_reads():
    spec = SPEC.model_copy(update={"observation": SpaceSpec(kind="Discrete", n=3, dtype="int64")})
    column = np.array([[0, 2], [1, 0], [2, 2]])
    fragment = altered(observation=column, final_observation=np.array([1]), last_observation=np.array([2, 0]))

    batch = join([fragment], spec)

    np.testing.assert_array_equal(batch.observation, np.eye(3, dtype=np.float32)[column])
    np.testing.assert_array_equal(batch.last_observation, np.eye(3, dtype=np.float32)[[2, 0]])


def test_check_lets_a_fragment_of_the_job_pass():
    check(rollout(), SPEC, steps=3)


@pytest.mark.parametrize(
    ("fragment", "steps", "says"),
    [
        (rollout(), 4, "3 time steps instead of 4"),
        (altered(observation=np.zeros((3, 2, 5), np.float32)), 3, "observation"),
        (altered(observation=np.zeros((3, 2, 4), np.float64)), 3, "observation"),
        (altered(action=np.zeros((3, 2, 1), np.int64)), 3, "action"),
        (altered(action=np.zeros((3, 2), np.int32)), 3, "action"),
    ],
)
def test_check_refuses_what_is_not_of_the_job(fragment, steps, says):
    with pytest.raises(CorruptFragment, match=says):
        check(fragment, SPEC, steps)


@pytest.mark.parametrize("column", ["observation", "final_observation", "last_observation", "action"])
@pytest.mark.parametrize(
    ("space", "outside"),
    [
        (SpaceSpec(kind="Discrete", n=2, dtype="int64"), -1),
        (SpaceSpec(kind="Discrete", n=2, dtype="int64"), 2),
        (SpaceSpec(kind="MultiDiscrete", shape=(2,), nvec=(2, 4), dtype="int64"), 2),
        (SpaceSpec(kind="MultiBinary", shape=(2,), dtype="int64"), 2),
    ],
)
def test_check_refuses_values_outside_of_their_space(column, space, outside):
    spec = EnvironmentSpec(observation=space, action=space)
    leading = {"observation": (3, 2), "final_observation": (1,), "last_observation": (2,), "action": (3, 2)}
    inside = {name: np.ones((*shape, *space.shape), np.int64) for name, shape in leading.items()}
    check(altered(**inside), spec, 3)

    with pytest.raises(CorruptFragment, match=column):
        check(altered(**{**inside, column: inside[column] * outside}), spec, 3)


def test_observations_count_from_the_start_of_their_space_and_actions_from_zero():
    space = SpaceSpec(kind="Discrete", n=2, start=5, dtype="int64")
    fragment = altered(
        observation=np.full((3, 2), 6),
        final_observation=np.full(1, 5),
        last_observation=np.full(2, 6),
        action=np.ones((3, 2), np.int64),
    )

    check(fragment, EnvironmentSpec(observation=space, action=space), 3)
