"""Policies act as their distribution says, in every space, and say with which probability."""

from math import log, pi

import numpy as np
import pytest
from fragments import elements, spaces
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ratchet.policies import (
    Actor,
    EnvironmentSpec,
    PolicySpec,
    SpaceSpec,
    flatten_observation,
    parameter_shapes,
)

PLANE = SpaceSpec(kind="Box", shape=(2,), low=-1.0, high=1.0)
DRAWS = 40_000


def parameters(spec: PolicySpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    values = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in parameter_shapes(spec).items()
    }
    if "observation.variance" in values:
        values["observation.variance"] = np.abs(values["observation.variance"])
    return values


def constant(action: SpaceSpec, outputs: list[float], log_std: list[float] | None = None) -> Actor:
    """A policy whose outputs are the same for every observation."""
    spec = PolicySpec(observation=PLANE, action=action, hidden=(3,))
    values = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    values["policy.1.bias"] = np.array(outputs, np.float32)
    if log_std is not None:
        values["log_std"] = np.array(log_std, np.float32)
    return Actor(spec, values)


def drawn(actor: Actor, deterministic: bool = False) -> tuple[np.ndarray, np.ndarray]:
    observation = np.zeros((DRAWS, 2), np.float32)
    return actor.act(observation, np.random.default_rng(1), deterministic)


def forward(spec: PolicySpec, values: dict[str, np.ndarray], observation: np.ndarray) -> np.ndarray:
    """The network in float64, written as its definition."""
    hidden = flatten_observation(spec.observation, observation).astype(np.float64)
    if spec.normalizes_observations:
        scale = np.sqrt(values["observation.variance"].astype(np.float64) + 1e-8)
        hidden = np.clip((hidden - values["observation.mean"]) / scale, -10, 10)
    for i in range(len(spec.hidden) + 1):
        hidden = hidden @ values[f"policy.{i}.weight"].T.astype(np.float64) + values[f"policy.{i}.bias"]
        if i < len(spec.hidden):
            hidden = np.tanh(hidden) if spec.activation == "Tanh" else np.maximum(hidden, 0)
    return hidden


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_probabilities(
    spec: PolicySpec, values: dict[str, np.ndarray], outputs: np.ndarray, action: np.ndarray
) -> np.ndarray:
    rows = np.arange(len(outputs))
    flat = action.reshape(len(outputs), -1)
    match spec.action.kind:
        case "Discrete":
            return log_softmax(outputs)[rows, flat[:, 0]]
        case "MultiDiscrete":
            total, first = np.zeros(len(outputs)), 0
            for component, n in enumerate(spec.action.nvec or ()):
                total += log_softmax(outputs[:, first : first + n])[rows, flat[:, component]]
                first += n
            return total
        case "MultiBinary":
            return -np.log1p(np.exp(np.where(flat == 1, -outputs, outputs))).sum(axis=1)
        case "Box":
            z = (flat - outputs) / np.exp(values["log_std"])
            return (-0.5 * z**2 - values["log_std"] - 0.5 * log(2 * pi)).sum(axis=1)


@given(st.data())
def test_log_probability_is_that_of_the_action_in_any_space(data: st.DataObject):
    spec = PolicySpec(
        observation=data.draw(spaces()),
        action=data.draw(spaces(action=True)),
        hidden=tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))),
        activation=data.draw(st.sampled_from(["Tanh", "ReLU"])),
        normalizes_observations=data.draw(st.booleans()),
    )
    deterministic = data.draw(st.booleans())
    rows = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = parameters(spec, rng)
    observation = elements(spec.observation, (rows,), rng)
    if isinstance(spec.observation.start, int):
        observation = (observation + spec.observation.start).astype(observation.dtype)

    actor = Actor(spec, values)
    actor.act(observation[:1], rng)  # buffers of another size
    action, log_probability = actor.act(observation, rng, deterministic)

    assert action.shape == (rows, *spec.action.shape)
    assert action.dtype == spec.action.dtype
    assert log_probability.shape == (rows,)
    assert log_probability.dtype == np.float32
    outputs = forward(spec, values, observation)
    np.testing.assert_allclose(
        log_probability, log_probabilities(spec, values, outputs, action), rtol=1e-3, atol=2e-3
    )


def test_discrete_frequencies_follow_the_logits():
    probabilities = np.array([0.2, 0.0, 0.7, 0.1])
    actor = constant(SpaceSpec(kind="Discrete", dtype="int64", n=4), [log(0.2), -1e4, log(0.7), log(0.1)])
    action, log_probability = drawn(actor)
    # Five standard deviations of a frequency.
    np.testing.assert_allclose(
        np.bincount(action, minlength=4) / DRAWS, probabilities, atol=5 * 0.5 / DRAWS**0.5
    )
    assert 1 not in action
    np.testing.assert_allclose(np.exp(log_probability), probabilities[action], rtol=1e-5)


def test_multi_discrete_components_are_drawn_apart():
    space = SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3))
    action, _ = drawn(constant(space, [log(0.3), log(0.7), log(0.1), log(0.6), log(0.3)]))
    joint = np.histogram2d(action[:, 0], action[:, 1], bins=(2, 3))[0] / DRAWS
    np.testing.assert_allclose(joint, np.outer([0.3, 0.7], [0.1, 0.6, 0.3]), atol=5 * 0.5 / DRAWS**0.5)


def test_multi_binary_frequencies_follow_the_logits():
    space = SpaceSpec(kind="MultiBinary", dtype="int8", shape=(3,))
    action, _ = drawn(constant(space, [log(0.2 / 0.8), -200.0, 200.0]))
    np.testing.assert_allclose(action.mean(axis=0), [0.2, 0.0, 1.0], atol=5 * 0.5 / DRAWS**0.5)


def test_gaussian_moments_follow_mean_and_log_std():
    actor = constant(SpaceSpec(kind="Box", shape=(2,), low=-1.0, high=1.0), [0.5, -3.0], [log(0.5), log(2.0)])
    action, _ = drawn(actor)
    np.testing.assert_allclose(action.mean(axis=0), [0.5, -3.0], atol=5 * 2 / DRAWS**0.5)
    np.testing.assert_allclose(action.std(axis=0), [0.5, 2.0], rtol=0.03)


def test_a_box_action_is_clipped_for_the_environment_only():
    actor = constant(
        SpaceSpec(kind="Box", shape=(2,), low=(-1.0, 0.0), high=(1.0, float("inf"))), [0, 0], [2, 2]
    )
    action, _ = drawn(actor)
    assert action.max() > 1
    taken = actor.to_environment(action)
    assert taken.dtype == np.float32
    assert taken[:, 0].min() == -1.0
    assert taken[:, 0].max() == 1.0
    assert taken[:, 1].min() == 0.0
    assert taken[:, 1].max() == action[:, 1].max()


def test_a_shifted_discrete_action_is_shifted_for_the_environment_only():
    actor = constant(SpaceSpec(kind="Discrete", dtype="int64", n=2, start=5), [0.0, 10.0])
    action, _ = drawn(actor, deterministic=True)
    assert set(action.tolist()) == {1}
    assert set(actor.to_environment(action).tolist()) == {6}


@pytest.mark.parametrize(
    ("space", "outputs", "expected"),
    [
        (SpaceSpec(kind="Discrete", dtype="int64", n=3), [0.0, 2.0, 1.0], 1),
        (
            SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 2)),
            [0.0, 1.0, 3.0, 2.0],
            [1, 0],
        ),
        (SpaceSpec(kind="MultiBinary", dtype="int8", shape=(2,)), [-0.1, 0.1], [0, 1]),
        (SpaceSpec(kind="Box", shape=(2,), low=-1.0, high=1.0), [0.25, -4.0], [0.25, -4.0]),
    ],
)
def test_deterministic_takes_the_most_likely(space: SpaceSpec, outputs: list[float], expected: object):
    log_std = [0.0, 0.0] if space.kind == "Box" else None
    action, _ = drawn(constant(space, outputs, log_std), deterministic=True)
    assert (action == np.array(expected)).all()


def test_what_act_returned_is_not_overwritten_by_the_next_call():
    rng = np.random.default_rng(0)
    spec = PolicySpec(observation=PLANE, action=PLANE)
    actor = Actor(spec, parameters(spec, rng))
    for deterministic in (False, True):
        first = actor.act(np.ones((4, 2), np.float32), rng, deterministic)
        kept = first.action.copy(), first.log_probability.copy()
        actor.act(np.full((4, 2), -9, np.float32), rng, deterministic)
        np.testing.assert_array_equal(first.action, kept[0])
        np.testing.assert_array_equal(first.log_probability, kept[1])


def test_an_observation_is_not_changed_by_acting():
    spec = PolicySpec(observation=PLANE, action=PLANE, normalizes_observations=True)
    observation = np.ones((4, 2), np.float32)
    Actor(spec, parameters(spec, np.random.default_rng(0))).act(observation, np.random.default_rng(0))
    np.testing.assert_array_equal(observation, 1)


def test_a_normalized_observation_is_clipped_at_ten():
    spec = PolicySpec(
        observation=PLANE, action=PLANE, hidden=(1,), activation="ReLU", normalizes_observations=True
    )
    values = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    values["policy.0.weight"] += 1
    values["policy.1.weight"] += 1
    values["observation.mean"] = np.array([1.0, 0.0], np.float32)
    action, _ = Actor(spec, values).act(np.array([[9e9, -3e-4]], np.float32), np.random.default_rng(0), True)
    np.testing.assert_allclose(action, 10 - 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("policy.0.bias", np.zeros(3)), ("surprise", np.zeros(1)), ("policy.0.bias", None)]
)
def test_parameters_that_do_not_fit_are_named(name: str, value: np.ndarray | None):
    spec = PolicySpec(observation=PLANE, action=PLANE)
    values = parameters(spec, np.random.default_rng(0))
    if value is None:
        del values[name]
    else:
        values[name] = value
    with pytest.raises(ValueError, match=f"spec: {name}$"):
        Actor(spec, values)


def test_names_and_shapes_of_parameters():
    discrete = PolicySpec(
        observation=PLANE, action=SpaceSpec(kind="Discrete", dtype="int64", n=4), hidden=(8, 5)
    )
    assert parameter_shapes(discrete) == {
        "policy.0.weight": (8, 2),
        "policy.0.bias": (8,),
        "policy.1.weight": (5, 8),
        "policy.1.bias": (5,),
        "policy.2.weight": (4, 5),
        "policy.2.bias": (4,),
    }
    box = PolicySpec(
        observation=SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3)),
        action=SpaceSpec(kind="Box", shape=(2, 2), low=0.0, high=1.0),
        hidden=(8,),
        normalizes_observations=True,
    )
    assert parameter_shapes(box)["log_std"] == (4,)
    assert parameter_shapes(box)["observation.mean"] == parameter_shapes(box)["observation.variance"] == (5,)


def test_flattening_makes_one_hot_vectors():
    discrete = SpaceSpec(kind="Discrete", dtype="int64", n=3, start=-1)
    np.testing.assert_array_equal(
        flatten_observation(discrete, np.array([[-1, 1]])), [[[1, 0, 0], [0, 0, 1]]]
    )
    multi = SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3), start=(0, 10))
    np.testing.assert_array_equal(flatten_observation(multi, np.array([[1, 11]])), [[0, 1, 0, 1, 0]])


def test_specs_survive_json_with_infinite_bounds():
    spec = EnvironmentSpec(
        observation=SpaceSpec(kind="Box", shape=(2,), low=float("-inf"), high=(1.0, float("inf"))),
        action=SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3), start=(0, 1)),
        reward_threshold=475.0,
    )
    assert EnvironmentSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Discrete"},
        {"kind": "Discrete", "n": 0},
        {"kind": "Discrete", "n": 2, "shape": (2,)},
        {"kind": "Box", "n": 2},
        {"kind": "MultiDiscrete", "shape": (2,), "nvec": (3,)},
        {"kind": "Box", "shape": (2,), "low": (0.0,)},
        {"kind": "Dict"},
        {"kind": "Box", "dtype": "float99"},
    ],
)
def test_a_space_that_contradicts_itself_is_refused(fields: dict[str, object]):
    with pytest.raises(ValidationError):
        SpaceSpec.model_validate(fields)
