"""Distributions of actions, as a learner needs them, with their gradients written out.

Sampling from them is the actors' part, in `ratchet.policies`. Tests compare log-probabilities,
entropies and all gradients with those of `torch.distributions` and autograd.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ratchet.policies import SpaceSpec
from ratchet_trainer.algorithms.network import Parameters


class Distribution(Protocol):
    """Of M actions, by the outputs of the network. The later calls belong to the `evaluate` before them."""

    def evaluate(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Log-probabilities (M,) of actions (M, A)."""
        ...

    def entropy(self) -> Tensor:
        """Entropies (M,)."""
        ...

    def gradient(self, into_log_probability: Tensor, into_entropy: float) -> Tensor:
        """The gradient of the outputs, from those of the log-probabilities (M,) and of each entropy."""
        ...


def of_space(space: SpaceSpec, parameters: Parameters) -> Distribution:
    """The distribution of the actions of a space; a Box's deviation is the parameter `log_std`."""
    match space.kind:
        case "Box":
            return Gaussian(parameters.value["log_std"], parameters.gradient["log_std"])
        case "MultiBinary":
            return Bernoulli()
        case "Discrete" | "MultiDiscrete":
            return Categorical([space.outputs] if space.nvec is None else space.nvec)


class Categorical:
    """Independent categorical distributions side by side: one for Discrete, several for MultiDiscrete."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts = tuple(counts)
        self._logs: tuple[Tensor, ...] = ()
        self._action = torch.empty(0)

    def evaluate(self, outputs: Tensor, action: Tensor) -> Tensor:
        """As `Distribution.evaluate`."""
        parts = outputs.split_with_sizes(self._counts, dim=1) if len(self._counts) > 1 else (outputs,)
        self._logs = tuple(torch.log_softmax(part, dim=1) for part in parts)
        self._action = action
        chosen = [log.gather(1, action[:, i : i + 1]) for i, log in enumerate(self._logs)]
        return chosen[0].squeeze(1) if len(chosen) == 1 else torch.cat(chosen, dim=1).sum(1)

    def entropy(self) -> Tensor:
        """As `Distribution.entropy`."""
        return torch.stack([-(log.exp() * log).sum(1) for log in self._logs]).sum(0)

    def gradient(self, into_log_probability: Tensor, into_entropy: float) -> Tensor:
        """As `Distribution.gradient`."""
        # d log p(a) / d logits = onehot(a) - p;  d H / d logits = -p (log p + H)
        column = into_log_probability.unsqueeze(1)
        parts: list[Tensor] = []
        for i, log in enumerate(self._logs):
            probability = log.exp()
            part = probability * -column
            part.scatter_add_(1, self._action[:, i : i + 1], column)
            if into_entropy:
                entropy = -(probability * log).sum(1, keepdim=True)
                part.addcmul_(probability, log + entropy, value=-into_entropy)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Bernoulli:
    """Independent coins, of which the outputs are the logits."""

    def __init__(self) -> None:
        self._logits = self._probability = self._action = torch.empty(0)

    def evaluate(self, outputs: Tensor, action: Tensor) -> Tensor:
        """As `Distribution.evaluate`."""
        self._logits, self._probability = outputs, outputs.sigmoid()
        self._action = action.to(outputs.dtype)
        return (self._action * outputs - softplus(outputs)).sum(1)

    def entropy(self) -> Tensor:
        """As `Distribution.entropy`."""
        return (softplus(self._logits) - self._probability * self._logits).sum(1)

    def gradient(self, into_log_probability: Tensor, into_entropy: float) -> Tensor:
        """As `Distribution.gradient`."""
        # d log p(a) / d logit = a - p;  d H / d logit = -logit p (1 - p)
        gradient = (self._action - self._probability) * into_log_probability.unsqueeze(1)
        slope = self._probability * (1.0 - self._probability)
        return gradient.addcmul_(self._logits, slope, value=-into_entropy)


class Gaussian:
    """Diagonal, with a deviation that does not depend on the observation."""

    def __init__(self, log_std: Tensor, log_std_gradient: Tensor) -> None:
        self._log_std = log_std
        self._log_std_gradient = log_std_gradient
        self._noise = self._inverse = torch.empty(0)

    def evaluate(self, outputs: Tensor, action: Tensor) -> Tensor:
        """As `Distribution.evaluate`."""
        self._inverse = torch.exp(-self._log_std)
        self._noise = (action - outputs) * self._inverse
        normalizer = self._log_std.sum() + 0.5 * len(self._log_std) * math.log(2.0 * math.pi)
        return self._noise.square().sum(1).mul_(-0.5).sub_(normalizer)

    def entropy(self) -> Tensor:
        """As `Distribution.entropy`."""
        each = 0.5 + 0.5 * math.log(2.0 * math.pi)
        return (self._log_std + each).sum().expand(len(self._noise))

    def gradient(self, into_log_probability: Tensor, into_entropy: float) -> Tensor:
        """As `Distribution.gradient`."""
        # d log p / d mean = z / sigma;  d log p / d log sigma = z^2 - 1;  d H / d log sigma = 1
        column = into_log_probability.unsqueeze(1)
        torch.sum((self._noise.square() - 1.0) * column, 0, out=self._log_std_gradient)
        self._log_std_gradient.add_(into_entropy * len(self._noise))
        return self._noise * self._inverse * column
