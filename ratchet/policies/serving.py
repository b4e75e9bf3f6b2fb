"""A policy as a server asks it: N observations, each row with its own mask, temperature, seed and memory.

Which rows come together is the server's, where a policy comes from is `artifact`'s.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.policies import distributions, onerow
from ratchet.policies.distributions import Bools, Choice, Floats
from ratchet.policies.draws import Draws
from ratchet.policies.networks import Network, NumpyNetwork, Outputs, checked
from ratchet.policies.spec import Bound, PolicySpec, SpaceSpec

if TYPE_CHECKING:
    from ratchet.policies.artifact import PolicyLineage

# Plain Python chooses faster than numpy up to FEW / (outputs + EACH) rows: `benchmarks/policy_math.py`.
FEW, EACH = 160, 14


class Decisions(NamedTuple):
    """What a policy decided for N observations; all of it is the caller's.

    Attributes:
        action: (N, *action shape) as the environment takes it: clipped to a Box's bounds, shifted by `start`.
        log_probability: (N,) float32, of the action under the distribution that it was drawn from, with mask
            and temperature, before clipping: the propensity's logarithm. 0 where the row is deterministic,
            for the action is sure. NaN where the network's outputs are not finite, and the action safe.
        value: (N,) float32, or None where the policy has no value network.
        states: (N, recurrent_size) float32 for the next observations, or None.

    """

    action: NDArray[Any]
    log_probability: Floats
    value: Floats | None
    states: Floats | None


class ServedPolicy:
    """A network with the distribution of its actions.

    One instance belongs to one thread: it reuses its buffers between calls.

    Args:
        digest: SHA-256 in hex of the artifact.
        spec: spaces and network.
        network: evaluates.
        log_std: (action size,) of a Box policy, None of others.
        seed: of rows that bring none; None takes it from the machine.
        lineage: where it comes from; None of one that no artifact holds.
        evaluated: what it did in the trainer's evaluation, where that is known.

    """

    def __init__(
        self,
        digest: str,
        spec: PolicySpec,
        network: Network,
        log_std: Floats | None,
        seed: int | None = None,
        lineage: "PolicyLineage | None" = None,
        evaluated: EvaluatedActions | None = None,
    ) -> None:
        self.digest = digest
        self.spec = spec
        self.lineage = lineage
        self.has_value = network.has_value
        self.arithmetic = network.arithmetic
        self.recurrent_size = spec.recurrent_size
        self.evaluated = evaluated
        self._network = network
        self._draws = Draws(seed)
        action = spec.action
        self._kind = action.kind
        self._observation_shape = spec.observation.shape
        self._dtype = np.dtype(action.dtype)
        self._parts = _parts(action)
        self._numbers = {"Box": 2 * action.size, "MultiBinary": action.size}.get(
            action.kind, len(self._parts)
        )
        self._start = np.resize(action.start, action.size)
        self._starts: list[int] = self._start.tolist()
        self._few = FEW // (action.outputs + EACH)
        self._columns = _columns(self._parts, action.outputs)
        if action.kind == "Box":
            if log_std is None:
                raise ValueError("a policy of Box actions needs log_std")
            self._log_std = log_std
            self._low, self._high = _bounds(action)
            self._log_stds: list[float] = log_std.tolist()
            self._lows: list[float] = self._low.tolist()
            self._highs: list[float] = self._high.tolist()

    @classmethod
    def of(
        cls, digest: str, spec: PolicySpec, parameters: Mapping[str, ArrayLike], seed: int | None = None
    ) -> "ServedPolicy":
        """A policy that is evaluated with numpy; raises ValueError where the parameters do not fit."""
        own = checked(spec, parameters)
        return cls(digest, spec, NumpyNetwork(spec, own), own.get("log_std"), seed)

    def decide(
        self,
        observations: NDArray[Any],
        *,
        masks: Bools | None = None,
        deterministic: Bools,
        temperature: Floats,
        seeds: Sequence[int | None],
        states: Floats | None = None,
    ) -> Decisions:
        """Decides for N observations, each as if it came alone but for rounding.

        Args:
            observations: (N, *observation shape), N at least 1, each an element of the observation space.
            masks: (N, outputs), True where allowed: values of Discrete, those of all components of
                MultiDiscrete one after the other, bits of MultiBinary that may be 1. None allows everything.
            deterministic: (N,); takes the most likely action.
            temperature: (N,), above 0: the action follows p^(1/T), normalized.
            seeds: N, each what a row's randomness is made of, or None for the policy's own.
            states: (N, recurrent_size) of a recurrent policy; None at the start of an episode, as zeros.

        Raises:
            ValueError: a mask allows nothing (said with its row), there is one for a Box, a temperature is
                not above 0, or a shape is wrong.

        """
        rows = len(observations)
        if observations.shape[1:] != self._observation_shape or rows == 0:
            raise ValueError(f"observations are {observations.shape}, not (N, *{self._observation_shape})")
        if masks is not None and (self._kind == "Box" or masks.shape != (rows, self.spec.action.outputs)):
            raise ValueError(
                "a Box of actions takes no mask: leave it out"
                if self._kind == "Box"
                else f"masks have the shape {masks.shape}, not ({rows}, {self.spec.action.outputs})"
            )
        outputs, value, states = self._network(observations, states)
        if rows <= self._few:
            action, log_probability = self._choose_few(outputs, masks, deterministic, temperature, seeds)
        else:
            action, log_probability = self._choose_many(outputs, masks, deterministic, temperature, seeds)
        return Decisions(action, log_probability, value, states)

    def outputs(self, observations: NDArray[Any], states: Floats | None = None) -> Outputs:
        """What the network makes of N observations, for comparison with others; all of it is the caller's."""
        outputs, value, new = self._network(observations, states)
        return Outputs(outputs.copy(), value, new)

    def _choose_few(
        self,
        outputs: Floats,
        masks: Bools | None,
        greedy: Bools,
        temperature: Floats,
        seeds: Sequence[int | None],
    ) -> tuple[NDArray[Any], Floats]:
        actions: list[Any] = []
        log_probabilities: list[float] = []
        allowed: list[Any] = masks.tolist() if masks is not None else [None] * len(outputs)
        rows = zip(outputs.tolist(), allowed, greedy.tolist(), temperature.tolist(), seeds, strict=True)
        for row, (its_outputs, mask, sure, heat, seed) in enumerate(rows):
            if not heat > 0:
                raise ValueError(_not_above_0(row, heat))
            if mask is not None:
                for component, part in enumerate(self._parts):
                    if True not in mask[part]:
                        raise ValueError(self._allows_none(row, component))
            if not isfinite(sum(its_outputs)):
                actions.append(self._safe(masks, row).tolist())
                log_probabilities.append(nan)
                continue
            uniform = None if sure else self._draws.row(seed, self._numbers)
            action, log_probability = self._choose_one(its_outputs, mask, heat, uniform)
            actions.append(action)
            log_probabilities.append(0.0 if sure else log_probability)
        taken = np.array(actions, self._dtype)
        return (
            taken.reshape(len(actions), *self.spec.action.shape),
            np.array(log_probabilities, np.float32),
        )

    def _choose_one(
        self, outputs: list[float], mask: list[bool] | None, temperature: float, uniform: list[float] | None
    ) -> tuple[Any, float]:
        """Action as the environment takes it, flat, and its log-probability."""
        if self._kind == "Discrete":
            first = None if uniform is None else uniform[0]
            index, log_probability = onerow.categorical(outputs, mask, temperature, first)
            return index + self._starts[0], log_probability
        if self._kind == "Box":
            drawn, log_probability = onerow.gaussian(outputs, self._log_stds, temperature, uniform)
            bounded = zip(drawn, self._lows, self._highs, strict=True)
            return [min(max(x, low), high) for x, low, high in bounded], log_probability
        if self._kind == "MultiBinary":
            return onerow.bernoulli(outputs, mask, temperature, uniform)
        chosen: list[int] = []
        log_probability = 0.0
        for i, part in enumerate(self._parts):
            index, its_log_probability = onerow.categorical(
                outputs[part],
                None if mask is None else mask[part],
                temperature,
                None if uniform is None else uniform[i],
            )
            chosen.append(index + self._starts[i])
            log_probability += its_log_probability
        return chosen, log_probability

    def _choose_many(
        self,
        outputs: Floats,
        masks: Bools | None,
        greedy: Bools,
        temperature: Floats,
        seeds: Sequence[int | None],
    ) -> tuple[NDArray[Any], Floats]:
        above = temperature > 0
        if not above.all():
            row = int(above.argmin())
            raise ValueError(_not_above_0(row, float(temperature[row])))
        if masks is not None:
            for component, part in enumerate(self._parts):
                allowed = masks[:, part].any(axis=1)
                if not allowed.all():
                    raise ValueError(self._allows_none(int(allowed.argmin()), component))
        broken = None
        finite = np.isfinite(outputs)
        if not finite.all():
            broken = np.flatnonzero(~finite.all(axis=1))
            outputs = outputs.copy()
            outputs[broken] = 0
        uniform = None if greedy.all() else self._draws.rows(seeds, self._numbers)
        chosen = self._draw(outputs, masks, greedy, temperature, uniform)
        chosen.log_probability[greedy] = 0
        action = chosen.action.reshape(len(outputs), -1)
        if self._kind == "Box":
            action = np.minimum(np.maximum(action, self._low), self._high)
        elif self._kind != "MultiBinary":
            action = action + self._start
        action = action.astype(self._dtype, copy=False).reshape(len(outputs), *self.spec.action.shape)
        if broken is not None:
            chosen.log_probability[broken] = nan
            for row in broken.tolist():
                action[row] = self._safe(masks, row)
        return action, chosen.log_probability

    def _safe(self, masks: Bools | None, row: int) -> NDArray[Any]:
        return safe_action(self.spec, None if masks is None else masks[row])

    def _draw(
        self,
        outputs: Floats,
        masks: Bools | None,
        greedy: Bools,
        temperature: Floats,
        uniform: distributions.Uniforms | None,
    ) -> Choice:
        if self._kind == "Box":
            return distributions.gaussian(outputs, self._log_std, greedy, temperature, uniform)
        if self._kind == "MultiBinary":
            return distributions.bernoulli(outputs, masks, greedy, temperature, uniform)
        if self._kind == "MultiDiscrete":
            return distributions.multi_categorical(
                self._columns, outputs, masks, greedy, temperature, uniform
            )
        first = None if uniform is None else uniform[:, 0]
        return distributions.categorical(outputs, masks, greedy, temperature, first)

    def _allows_none(self, row: int, component: int) -> str:
        of = "action" if self._kind == "Discrete" else f"value of component {component}"
        return f"the mask of row {row} allows no {of}"


def safe_action(spec: PolicySpec, mask: Bools | None = None) -> NDArray[Any]:
    """An action that is valid whatever the policy is: (*action shape) as the environment takes it.

    The first value that the mask (outputs,) allows, no bit of a MultiBinary, and of a Box the middle of its
    bounds, or where one is infinite what lies nearest to 0.

    Raises:
        ValueError: the mask allows nothing, or there is one for a Box.

    """
    action = spec.action
    if action.kind == "Box":
        if mask is not None:
            raise ValueError("a Box of actions takes no mask: leave it out")
        low, high = _bounds(action)
        with np.errstate(invalid="ignore"):
            middle = low / 2 + high / 2
        nearest = np.minimum(np.maximum(0.0, low), high)
        chosen = np.where(np.isfinite(low) & np.isfinite(high), middle, nearest)
    elif action.kind == "MultiBinary":
        chosen = np.zeros(action.size, np.int64)
    else:
        found: list[int] = []
        for part in _parts(action):
            allowed = np.ones(part.stop - part.start, np.bool_) if mask is None else mask[part]
            if not allowed.any():
                raise ValueError("the mask allows no action")
            found.append(int(allowed.argmax()))
        chosen = np.array(found, np.int64) + np.asarray(action.start, np.int64)
    return chosen.astype(action.dtype).reshape(action.shape)


def _not_above_0(row: int, temperature: float) -> str:
    return f"the temperature of row {row} is {temperature}: it must be above 0"


def _bounds(action: SpaceSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    """(size,) each, in the action's dtype."""

    def bound(given: Bound | None) -> NDArray[Any]:
        if given is None:
            raise ValueError("a Box of actions needs its bounds low and high")
        return np.resize(np.array(given, action.dtype), action.size)

    return bound(action.low), bound(action.high)


def _parts(action: SpaceSpec) -> list[slice]:
    """Where among the outputs the values of each component of a Discrete or MultiDiscrete lie."""
    counts = (action.n,) if action.n is not None else action.nvec or ()
    return [slice(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts))]


def _columns(parts: Sequence[slice], outputs: int) -> NDArray[np.intp]:
    """(components, widest) places of each component's values; one past the end where it has fewer."""
    widest = max((part.stop - part.start for part in parts), default=0)
    rows = [
        [i if i < part.stop else outputs for i in range(part.start, part.start + widest)] for part in parts
    ]
    return np.array(rows, np.intp)
