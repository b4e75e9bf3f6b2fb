"""Policies of any kind for tests: specs, parameters, and questions that fit them."""

from typing import Any

import numpy as np
from fragments import elements, spaces
from hypothesis import strategies as st

from ratchet.policies import PolicySpec, SpaceSpec, parameter_shapes, value_shapes
from ratchet.policies.artifact import Artifact, PolicyLineage, make

PLANE = SpaceSpec(kind="Box", shape=(4,), low=-1.0, high=float("inf"))
TWO_WAYS = SpaceSpec(kind="Discrete", dtype="int64", n=2)
CARTPOLE = PolicySpec(observation=PLANE, action=TWO_WAYS)


def random_parameters(spec: PolicySpec, seed: int = 0, value: bool = True) -> dict[str, np.ndarray]:
    """As a trained network has them: each output about as large as its inputs."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(spec) | (value_shapes(spec) if value else {})
    parameters = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    if spec.normalizes_observations:
        parameters["observation.variance"] = np.abs(parameters["observation.variance"]) + np.float32(0.1)
    return parameters


@st.composite
def policy_specs(draw: st.DrawFn) -> PolicySpec:
    return PolicySpec(
        observation=draw(spaces()),
        action=draw(spaces(action=True)),
        hidden=tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))),
        activation=draw(st.sampled_from(["Tanh", "ReLU"])),
        normalizes_observations=draw(st.booleans()),
        recurrent_size=draw(st.sampled_from([0, 3])),
    )


def observations(spec: PolicySpec, rows: int, rng: np.random.Generator) -> np.ndarray:
    """(rows, *shape), as the environment gives them."""
    space = spec.observation
    return elements(space, (rows,), rng) + np.resize(space.start, space.shape).astype(space.dtype)


def components(action: SpaceSpec) -> list[slice]:
    """Where among the outputs each choice lies."""
    counts = (action.n,) if action.n is not None else action.nvec or ()
    return [slice(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts))]


@st.composite
def questions(draw: st.DrawFn, spec: PolicySpec, rows: int) -> dict[str, Any]:
    """Arguments of `decide`, different in each row."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = None
    if spec.action.kind != "Box" and draw(st.booleans()):
        masks = rng.random((rows, spec.action.outputs)) < 0.5
        for part in components(spec.action):
            masks[np.arange(rows), rng.integers(part.start, part.stop, rows)] = True
    states = None
    if spec.recurrent_size and draw(st.booleans()):
        states = rng.standard_normal((rows, spec.recurrent_size)).astype(np.float32)
    return {
        "observations": observations(spec, rows, rng),
        "masks": masks,
        "deterministic": rng.random(rows) < draw(st.sampled_from([0.0, 0.5, 1.0])),
        "temperature": np.exp(rng.standard_normal(rows)).astype(np.float32),
        "seeds": [int(seed) for seed in rng.integers(-(2**62), 2**62, rows)],
        "states": states,
    }


def plain(observation: np.ndarray, **changes: Any) -> dict[str, Any]:
    """Sampled, without mask or memory, at temperature 1."""
    rows = len(observation)
    return {
        "observations": observation,
        "masks": None,
        "deterministic": np.zeros(rows, np.bool_),
        "temperature": np.ones(rows, np.float32),
        "seeds": list(range(rows)),
        "states": None,
    } | changes


def artifact(spec: PolicySpec = CARTPOLE, seed: int = 0, **options: Any) -> Artifact:
    """As a trainer writes it."""
    rng = np.random.default_rng(seed)
    parameters = random_parameters(spec, seed)
    return make(spec, parameters, observations(spec, 5, rng), PolicyLineage(job="cartpole"), **options)
