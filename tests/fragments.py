"""Spaces and fragments for tests, small ones by hand and random ones by Hypothesis."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ratchet.experience import Fragment, Header
from ratchet.policies import EnvironmentSpec, SpaceSpec

# Those of `rollout`.
SPACES = EnvironmentSpec(
    observation=SpaceSpec(kind="Box", shape=(4,), low=-1.0, high=1.0),
    action=SpaceSpec(kind="Discrete", dtype="int64", n=2),
)


def header(**changes: Any) -> Header:
    values: dict[str, Any] = {
        "kind": "rollout",
        "worker": "pool/0",
        "incarnation": "a1b2",
        "sequence": 1,
        "ticket": 7,
        "version": 3,
        "n": 6,
        "seconds": 0.25,
        "waited": 0.5,
    }
    return Header(**{**values, **changes})


def rollout(**changes: Any) -> Fragment:
    """Three steps of two environments, of which the second is truncated in its second step."""
    time, envs = 3, 2
    truncated = np.zeros((time, envs), bool)
    truncated[1, 1] = True
    columns = {
        "observation": np.arange(time * envs * 4, dtype=np.float32).reshape(time, envs, 4),
        "action": np.array([[0, 1], [1, 1], [0, 0]], np.int64),
        "log_probability": np.full((time, envs), -0.7, np.float32),
        "reward": np.ones((time, envs), np.float32),
        "terminated": np.zeros((time, envs), bool),
        "truncated": truncated,
        "valid": np.ones((time, envs), bool),
        "final_observation": np.zeros((1, 4), np.float32),
        "last_observation": np.ones((envs, 4), np.float32),
        "episode_return": np.array([2.0], np.float32),
        "episode_length": np.array([2], np.int32),
    }
    return Fragment(header(**changes), columns)


def evaluation(**changes: Any) -> Fragment:
    columns = {
        "episode_return": np.array([2.0, 3.0], np.float32),
        "episode_length": np.array([2, 3], np.int32),
    }
    return Fragment(header(kind="evaluation", n=0, **changes), columns)


def evaluation_with_actions(**changes: Any) -> Fragment:
    """The same, with how often each of the two actions was taken."""
    asked = evaluation(**changes)
    taken = np.array([[2.0, 0.0], [1.0, 2.0]])
    return Fragment(asked.header, {**asked.columns, "action_sum": taken, "action_squares": taken})


shapes = st.lists(st.integers(1, 3), min_size=0, max_size=2).map(tuple)


@st.composite
def spaces(draw: st.DrawFn, action: bool = False) -> SpaceSpec:
    kind = draw(st.sampled_from(["Box", "Discrete", "MultiDiscrete", "MultiBinary"]))
    shape = draw(shapes)
    size = int(np.prod(shape))
    if kind == "Discrete":
        return SpaceSpec(kind=kind, dtype="int64", n=draw(st.integers(1, 5)), start=draw(st.integers(-2, 2)))
    if kind == "MultiDiscrete":
        nvec = tuple(draw(st.lists(st.integers(1, 4), min_size=size, max_size=size)))
        return SpaceSpec(kind=kind, dtype="int64", shape=shape, nvec=nvec)
    if kind == "MultiBinary":
        return SpaceSpec(kind=kind, dtype="int8", shape=shape)
    dtype = draw(st.sampled_from(["float32", "float64"] if action else ["float32", "float64", "uint8"]))
    return SpaceSpec(kind=kind, dtype=dtype, shape=shape, low=0.0, high=1.0)


def elements(space: SpaceSpec, leading: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random elements of a space, as a policy counts them (from 0)."""
    shape = (*leading, *space.shape)
    if space.kind == "Box":
        return (rng.random(shape) * (255 if space.dtype == "uint8" else 1)).astype(space.dtype)
    highest = space.n if space.n is not None else 2
    if space.nvec is not None:
        highest = np.array(space.nvec).reshape(space.shape)
    return rng.integers(0, highest, shape).astype(space.dtype)


@st.composite
def rollouts(draw: st.DrawFn) -> Fragment:
    """Fragments of any spaces, sizes and endings."""
    observation, action = draw(spaces()), draw(spaces(action=True))
    grid = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    valid, terminated, truncated = (draw(hnp.arrays(bool, grid)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    terminated, truncated = terminated & valid, truncated & valid
    episodes = draw(st.integers(0, 3))
    columns = {
        "observation": elements(observation, grid, rng),
        "action": elements(action, grid, rng),
        "log_probability": rng.standard_normal(grid, np.float32),
        "reward": rng.standard_normal(grid, np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
        "final_observation": elements(observation, (int(truncated.sum()),), rng),
        "last_observation": elements(observation, (grid[1],), rng),
        "episode_return": rng.standard_normal(episodes).astype(np.float32),
        "episode_length": rng.integers(0, 9, episodes).astype(np.int32),
    }
    fields = {
        "n": int(valid.sum()),
        "sequence": draw(st.integers(1, 2**53)),
        "version": draw(st.integers(0, 2**53)),
        "seconds": draw(st.floats(0, 1e6)),
        "worker": draw(st.text(min_size=1, max_size=8)),
    }
    return Fragment(header(**fields), columns)
