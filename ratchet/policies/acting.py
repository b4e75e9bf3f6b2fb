"""Observations to actions in numpy: the hot path of rollout workers and of the policy server.

A learner's own forward pass (torch) must give the same log-probabilities; a parity test holds that.
"""

from collections.abc import Mapping
from math import log, pi
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratchet.policies.spec import Bound, PolicySpec, flatten_observation, parameter_shapes

Floats = NDArray[np.float32]

NORMALIZED_LIMIT = 10.0
VARIANCE_FLOOR = 1e-8


class Actions(NamedTuple):
    """What a policy decided for N observations.

    Attributes:
        action: (N, *action shape) in the policy's own terms: from 0 for Discrete and MultiDiscrete, not
            clipped for Box. `Actor.to_environment` turns it into what the environment takes.
        log_probability: (N,) float32.

    """

    action: NDArray[Any]
    log_probability: Floats


class Actor:
    """Acts with fixed parameters.

    One instance belongs to one thread: it reuses its buffers between calls. What it returns is the caller's.

    Raises:
        ValueError: parameters do not have the names and shapes of `parameter_shapes(spec)`, or the policy
            is recurrent.

    """

    def __init__(self, spec: PolicySpec, parameters: Mapping[str, ArrayLike]) -> None:
        if spec.recurrent_size:
            raise ValueError("an Actor keeps no state between observations: serve a recurrent policy")
        self.spec = spec
        own = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
        wanted = parameter_shapes(spec)
        if {name: value.shape for name, value in own.items()} != wanted:
            wrong = sorted(
                name
                for name in wanted.keys() | own.keys()
                if name not in own or name not in wanted or own[name].shape != wanted[name]
            )
            raise ValueError(f"parameters do not fit the policy's spec: {', '.join(wrong)}")

        layers = len(spec.hidden) + 1
        self._weights = [np.ascontiguousarray(own[f"policy.{i}.weight"].T) for i in range(layers)]
        self._biases = [own[f"policy.{i}.bias"] for i in range(layers)]
        self._rows = -1
        self._layers: list[Floats] = []
        self._mean = own.get("observation.mean")
        if self._mean is not None:
            variance = own["observation.variance"]
            self._scale = np.reciprocal(np.sqrt(variance + np.float32(VARIANCE_FLOOR)))

        action = spec.action
        self._dtype = np.dtype(action.dtype)
        self._start = np.asarray(action.start, np.int64).reshape(
            action.shape if isinstance(action.start, tuple) else ()
        )
        if action.kind == "Box":
            self._low = _bound(action.low, action.shape, self._dtype)
            self._high = _bound(action.high, action.shape, self._dtype)
            log_std = own["log_std"]
            self._std = np.exp(log_std)
            self._log_normalizer = np.float32(log_std.sum() + 0.5 * action.size * log(2 * pi))
        elif action.kind == "MultiDiscrete":
            # Logits of components with fewer values than the widest are read from an appended -inf.
            counts = action.nvec or ()
            widest, first = max(counts), 0
            columns: list[list[int]] = []
            for n in counts:
                columns.append([first + k if k < n else action.outputs for k in range(widest)])
                first += n
            self._columns = np.array(columns, np.intp)

    def act(
        self, observation: NDArray[Any], rng: np.random.Generator, deterministic: bool = False
    ) -> Actions:
        """Decides for N observations.

        Args:
            observation: (N, *observation shape) as the environment gives it.
            rng: used only when sampling.
            deterministic: take the most likely action.

        """
        outputs = self._forward(observation)
        match self.spec.action.kind:
            case "Discrete":
                return _categorical(outputs, rng, deterministic, self._dtype)
            case "MultiDiscrete":
                return self._multi_discrete(outputs, rng, deterministic)
            case "MultiBinary":
                return self._multi_binary(outputs, rng, deterministic)
            case "Box":
                return self._gaussian(outputs, rng, deterministic)

    def to_environment(self, action: NDArray[Any]) -> NDArray[Any]:
        """The action the environment takes: clipped to the bounds of a Box, shifted by `start` otherwise."""
        if self.spec.action.kind == "Box":
            return np.minimum(np.maximum(action, self._low), self._high)
        if self.spec.action.start == 0:
            return action
        return (action + self._start).astype(self._dtype, copy=False)

    def _forward(self, observation: NDArray[Any]) -> Floats:
        hidden: Floats = flatten_observation(self.spec.observation, observation)
        if self._mean is not None:
            hidden = np.multiply(hidden - self._mean, self._scale)
            np.clip(hidden, -NORMALIZED_LIMIT, NORMALIZED_LIMIT, out=hidden)
        if self._rows != len(hidden):
            self._rows = len(hidden)
            self._layers = [np.empty((self._rows, len(bias)), np.float32) for bias in self._biases]
        tanh = self.spec.activation == "Tanh"
        last = len(self._weights) - 1
        for i, out in enumerate(self._layers):
            np.matmul(hidden, self._weights[i], out=out)
            out += self._biases[i]
            if i != last:
                if tanh:
                    np.tanh(out, out=out)
                else:
                    np.maximum(out, 0.0, out=out)
            hidden = out
        return hidden

    def _multi_discrete(self, logits: Floats, rng: np.random.Generator, deterministic: bool) -> Actions:
        rows = len(logits)
        padded = np.concatenate([logits, np.full((rows, 1), -np.inf, np.float32)], axis=1)
        components, widest = self._columns.shape
        flat = padded[:, self._columns].reshape(rows * components, widest)
        chosen = _categorical(flat, rng, deterministic, self._dtype)
        return Actions(
            chosen.action.reshape(rows, *self.spec.action.shape),
            chosen.log_probability.reshape(rows, components).sum(axis=1),
        )

    def _multi_binary(self, logits: Floats, rng: np.random.Generator, deterministic: bool) -> Actions:
        if deterministic:
            chosen = logits > 0
        else:
            # P(logistic noise < logit) = sigmoid(logit); 1 - u keeps the uniform number above 0.
            uniform = 1 - rng.random(logits.shape, np.float32)
            chosen = uniform <= 1 / (1 + np.exp(-logits.clip(-80, 80)))
        log_probability = -np.logaddexp(0, np.where(chosen, -logits, logits)).sum(axis=1, dtype=np.float32)
        shape = (len(logits), *self.spec.action.shape)
        return Actions(chosen.reshape(shape).astype(self._dtype), log_probability)

    def _gaussian(self, mean: Floats, rng: np.random.Generator, deterministic: bool) -> Actions:
        shape = (len(mean), *self.spec.action.shape)
        if deterministic:
            log_probability = np.full(len(mean), -self._log_normalizer, np.float32)
            return Actions(mean.reshape(shape).astype(self._dtype), log_probability)
        noise = rng.standard_normal(mean.shape, np.float32)
        log_probability = -0.5 * np.einsum("na,na->n", noise, noise) - self._log_normalizer
        noise *= self._std
        noise += mean
        return Actions(noise.reshape(shape).astype(self._dtype, copy=False), log_probability)


def _categorical(
    logits: Floats, rng: np.random.Generator, deterministic: bool, dtype: np.dtype[Any]
) -> Actions:
    """Samples (R,) indices from (R, n) logits by inversion, which it may overwrite."""
    logits -= logits.max(axis=1, keepdims=True)
    cumulative = np.exp(logits).cumsum(axis=1)
    total = cumulative[:, -1]
    if deterministic:
        index = logits.argmax(axis=1)
    else:
        # 1 - u lies in (0, 1], so a value without probability is never taken, nor one past the end.
        threshold = (1 - rng.random(len(logits), np.float32)) * total
        index = (cumulative < threshold[:, None]).sum(axis=1)
    log_probability = logits[np.arange(len(logits)), index] - np.log(total)
    return Actions(index.astype(dtype, copy=False), log_probability)


def _bound(bound: Bound | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if bound is None:
        raise ValueError("a Box of actions needs its bounds low and high")
    return np.array(bound, dtype).reshape(shape if isinstance(bound, tuple) else ())
