"""Observations to the parameters of an action distribution, as a server needs it: one row as fast as many.

What is drawn from that distribution is not here, nor are weights of other formats than float32.
"""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratchet.policies.acting import NORMALIZED_LIMIT, VARIANCE_FLOOR
from ratchet.policies.formats import WeightFormat
from ratchet.policies.spec import PolicySpec, flatten_observation, parameter_shapes, value_shapes

Floats = NDArray[np.float32]

# Numbers in a network from which torch may be worth its memory, and the rows by which that is judged:
# `benchmarks/policy_math.py`.
LARGE = 250_000
TYPICAL_ROWS = 16


class Outputs(NamedTuple):
    """What a network makes of N observations.

    Attributes:
        outputs: (N, outputs); the network's next call overwrites them.
        value: (N,), where there is a value network.
        states: (N, recurrent_size) after these observations, of a recurrent policy.

    """

    outputs: Floats
    value: Floats | None
    states: Floats | None


class Network(Protocol):
    """What turns observations into outputs; `NumpyNetwork` and `TorchNetwork` do.

    One instance belongs to one thread.
    """

    @property
    def arithmetic(self) -> str:
        """What multiplies, and in which numbers."""
        ...

    @property
    def has_value(self) -> bool:
        """Outputs have a value."""
        ...

    def __call__(self, observations: NDArray[Any], states: Floats | None) -> Outputs:
        """Evaluates N observations.

        Args:
            observations: (N, *observation shape), N at least 1.
            states: (N, recurrent_size) float32, None for the state at an episode's start.

        """
        ...


def checked(spec: PolicySpec, parameters: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Parameters as float32, those of a value network among them if there are any.

    Raises:
        ValueError: they do not have the names and shapes that the spec gives.

    """
    own = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
    wanted = parameter_shapes(spec)
    if any(name.startswith("value.") for name in own):
        wanted |= value_shapes(spec)
    wrong = [
        f"{name} is {own[name].shape if name in own else 'missing'}, not {wanted.get(name, 'expected')}"
        for name in sorted(wanted.keys() | own.keys())
        if name not in own or name not in wanted or own[name].shape != wanted[name]
    ]
    if wrong:
        raise ValueError(f"parameters do not fit the policy's spec: {'; '.join(wrong)}")
    return own


class NumpyNetwork:
    """Evaluates with numpy, in buffers that are made once.

    Raises:
        ValueError: as `checked`.

    """

    arithmetic = "numpy float32"

    def __init__(self, spec: PolicySpec, parameters: Mapping[str, ArrayLike]) -> None:
        own = checked(spec, parameters)
        self._space = spec.observation
        self._is_vector = spec.observation.kind in ("Box", "MultiBinary")
        features, depth = spec.observation.features, len(spec.hidden)
        self._row = np.ones(features + 1, np.float32)
        self._row_features = self._row[:features]
        self._mean = own.get("observation.mean")
        if self._mean is not None:
            self._scale = np.reciprocal(np.sqrt(own["observation.variance"] + np.float32(VARIANCE_FLOOR)))
        tanh = spec.activation == "Tanh"
        memory = spec.recurrent_size
        self._policy = _Perceptron(own, "policy", range(depth if memory else depth + 1), tanh, not memory)
        self._memory = _GRU(own, memory) if memory else None
        self._head = _Perceptron(own, "policy", range(depth, depth + 1), tanh, True) if memory else None
        self._value = None
        if "value.0.weight" in own:
            self._value = _Perceptron(own, "value", range(1 if memory else depth + 1), tanh, True)

    @property
    def has_value(self) -> bool:
        """There is a network for it among the parameters."""
        return self._value is not None

    def __call__(self, observations: NDArray[Any], states: Floats | None) -> Outputs:
        """Evaluates as the protocol says."""
        if self._memory is not None and self._head is not None:
            hidden = self._policy.rows(self._features(observations))
            state = self._memory(hidden, states)
            value = None if self._value is None else self._value.rows(state)[:, 0].copy()
            return Outputs(self._head.rows(state), value, state)
        if len(observations) == 1:
            self._read_row(observations)
            value = None if self._value is None else self._value.row(self._row)[0].copy()
            return Outputs(self._policy.row(self._row), value, None)
        features = self._features(observations)
        value = None if self._value is None else self._value.rows(features)[:, 0].copy()
        return Outputs(self._policy.rows(features), value, None)

    def _read_row(self, observations: NDArray[Any]) -> None:
        row = self._row_features
        if self._is_vector:
            row[:] = observations.reshape(-1)
        else:
            row[:] = flatten_observation(self._space, observations)[0]
        if self._mean is not None:
            _normalize(row, self._mean, self._scale)

    def _features(self, observations: NDArray[Any]) -> Floats:
        features = flatten_observation(self._space, observations)
        if self._mean is not None:
            features = features.copy()
            _normalize(features, self._mean, self._scale)
        return features


def by_speed(spec: PolicySpec, parameters: Mapping[str, Floats], weights: WeightFormat) -> list[Network]:
    """What can evaluate these parameters on this machine, the fastest first, numpy always among it.

    numpy is not behind torch in float32. Multiplying in bfloat16 or int8, torch is two to four times as fast
    where a network is large and the processor has instructions for it, and slower where one is not so: hence
    both are timed.

    Args:
        spec: of the policy.
        parameters: as `checked` returns them.
        weights: the format that they were stored in, and may be multiplied in.

    """
    ours = NumpyNetwork(spec, parameters)
    if weights == "float32" or sum(value.size for value in parameters.values()) < LARGE:
        return [ours]
    try:
        torchnetwork = import_module("ratchet.policies.torchnetwork")
    except ImportError:
        return [ours]
    theirs: Network = torchnetwork.TorchNetwork(spec, parameters, weights)
    space = spec.observation
    observations = np.resize(np.resize(space.start, space.shape), (TYPICAL_ROWS, *space.shape))
    return sorted((ours, theirs), key=lambda network: _seconds(network, observations))


def _seconds(network: Network, observations: NDArray[Any]) -> float:
    """Of processor time, once the network is warm."""
    network(observations, None)
    spent: list[float] = []
    for _ in range(5):
        begun = time.thread_time()
        network(observations, None)
        spent.append(time.thread_time() - begun)
    return min(spent)


class _Perceptron:
    """Layers by name, each bias a last row of its weights: for one row of inputs that saves a call.

    Weights lie as (inputs, outputs), which BLAS multiplies a few rows by without copying them first.
    """

    def __init__(
        self, parameters: Mapping[str, Floats], name: str, layers: range, tanh: bool, ends: bool
    ) -> None:
        self._activate: Callable[[Floats], None] = _tanh if tanh else _rectify
        self._weights: list[Floats] = []
        self._biases: list[Floats] = []
        self._steps: list[tuple[Floats, Floats, Floats, bool]] = []
        self._capacity = 0
        self._buffers: list[Floats] = []
        for i in layers:
            weight, bias = parameters[f"{name}.{i}.weight"], parameters[f"{name}.{i}.bias"]
            joined = np.ascontiguousarray(np.concatenate([weight.T, bias[None]]))
            row = np.ones(len(bias) + 1, np.float32)
            self._weights.append(joined[:-1])
            self._biases.append(joined[-1])
            self._steps.append((joined, row, row[:-1], not ends or i != layers[-1]))
        self._row_outputs = self._steps[-1][2][None]

    def row(self, x: Floats) -> Floats:
        """(inputs + 1,), of which the last is 1, to (1, outputs)."""
        for weight, row, out, activates in self._steps:
            np.dot(x, weight, out)
            if activates:
                self._activate(out)
            x = row
        return self._row_outputs

    def rows(self, x: Floats) -> Floats:
        """(N, inputs) to (N, outputs)."""
        rows = len(x)
        if rows > self._capacity:
            self._capacity = 1 << (rows - 1).bit_length()
            self._buffers = [np.empty((self._capacity, len(bias)), np.float32) for bias in self._biases]
        for i, (_, _, _, activates) in enumerate(self._steps):
            out = self._buffers[i][:rows]
            np.dot(x, self._weights[i], out)
            np.add(out, self._biases[i], out)
            if activates:
                self._activate(out)
            x = out
        return x


class _GRU:
    """Cho et al. 2014, arXiv:1406.1078, in the variant of cuDNN and `torch.nn.GRUCell`."""

    def __init__(self, parameters: Mapping[str, Floats], size: int) -> None:
        self._size = size
        self._input, self._hidden = (
            np.ascontiguousarray(parameters["recurrent.input.weight"].T),
            np.ascontiguousarray(parameters["recurrent.hidden.weight"].T),
        )
        self._input_bias = parameters["recurrent.input.bias"]
        self._hidden_bias = parameters["recurrent.hidden.bias"]

    def __call__(self, x: Floats, state: Floats | None) -> Floats:
        """(N, inputs) and (N, size) to the new state (N, size), which is the caller's."""
        if state is None:
            state = np.zeros((len(x), self._size), np.float32)
        size = self._size
        ours = np.dot(x, self._input) + self._input_bias
        past = np.dot(state, self._hidden) + self._hidden_bias
        gates = _sigmoid(ours[:, : 2 * size] + past[:, : 2 * size])
        reset, update = gates[:, :size], gates[:, size:]
        new = np.tanh(ours[:, 2 * size :] + reset * past[:, 2 * size :])
        return new + update * (state - new)


def _normalize(features: Floats, mean: Floats, scale: Floats) -> None:
    features -= mean
    features *= scale
    np.minimum(features, NORMALIZED_LIMIT, out=features)
    np.maximum(features, -NORMALIZED_LIMIT, out=features)


def _tanh(x: Floats) -> None:
    np.tanh(x, x)


def _rectify(x: Floats) -> None:
    np.maximum(x, 0.0, out=x)


def _sigmoid(x: Floats) -> Floats:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
