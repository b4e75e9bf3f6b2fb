"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), to be read from top to bottom.

Follows "The 37 implementation details of PPO" (Huang et al. 2022,
https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/), cited below as [37, n]. How
networks and distributions are computed is next door, in `network` and `distributions`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratchet.api.v1alpha1.training import Algorithm
from ratchet.policies import EnvironmentSpec, PolicySpec, parameter_shapes, value_shapes
from ratchet_trainer.algorithms import distributions
from ratchet_trainer.algorithms.batch import Batch, Flags, Floats
from ratchet_trainer.algorithms.errors import Diverged
from ratchet_trainer.algorithms.network import MLP, Adam, Parameters, learner_shapes
from ratchet_trainer.algorithms.statistics import DiscountedReturns, RunningStatistics, within

# How the names of all parameters of a network begin.
NETWORK = ("policy.", "value.", "log_std")


@dataclass(frozen=True, slots=True)
class Metrics:
    """What one update says of itself; losses and KL are those of its last epoch."""

    policy_loss: float
    value_loss: float
    entropy: float
    approx_kl: float
    clip_fraction: float
    gradient_norm: float
    explained_variance: float
    learning_rate: float
    clip_range: float
    epochs: int


class PPO:
    """Learns a policy from batches.

    Deterministic: the same seed, batches and device give the same parameters, bit for bit, whatever number
    of times the state was saved and loaded between.

    Args:
        algorithm: hyperparameters, network and seed.
        environment: spaces.
        device: "cpu" or "cuda".

    Attributes:
        policy_spec: of the policy that `acting_parameters` are for.
        parameters: of policy and value, with the gradient of the latest minibatch.

    """

    def __init__(self, algorithm: Algorithm, environment: EnvironmentSpec, device: str = "cpu") -> None:
        self._hyperparameters = algorithm.ppo
        self.policy_spec = PolicySpec(
            observation=environment.observation,
            action=environment.action,
            hidden=tuple(algorithm.network.hidden),
            activation=algorithm.network.activation,
            normalizes_observations=algorithm.ppo.normalize_observations,
        )
        self._device = torch.device(device)
        self._generator = torch.Generator().manual_seed(algorithm.seed)
        self.parameters = Parameters(learner_shapes(self.policy_spec), self._device)
        self._policy = MLP(self.parameters, "policy", len(algorithm.network.hidden) + 1, self.policy_spec)
        self._value = MLP(self.parameters, "value", len(algorithm.network.hidden) + 1, self.policy_spec)
        self._distribution = distributions.of_space(environment.action, self.parameters)
        self._adam = Adam(self.parameters)
        self._observations = RunningStatistics(environment.observation.features)
        self._returns = DiscountedReturns(algorithm.ppo.gamma)
        # Orthogonal, gain sqrt(2), 0.01 at the policy's head and 1 at the value's; biases zero [37, 2].
        self._policy.initialize(0.01, self._generator)
        self._value.initialize(1.0, self._generator)

    def acting_parameters(self) -> dict[str, Floats]:
        """What a policy needs to act, by the names of `ratchet.policies.parameter_shapes`; copies."""
        names = parameter_shapes(self.policy_spec)
        values = {name: self.parameters.value[name] for name in names if not name.startswith("observation.")}
        arrays = {name: value.cpu().numpy().copy() for name, value in values.items()}
        if self.policy_spec.normalizes_observations:
            arrays["observation.mean"] = self._observations.mean.astype(np.float32)
            arrays["observation.variance"] = self._observations.variance.astype(np.float32)
        return arrays

    def served_parameters(self) -> dict[str, Floats]:
        """Those of `acting_parameters` and of the value network, its values in the environment's rewards."""
        names = value_shapes(self.policy_spec)
        values = {name: self.parameters.value[name].cpu().numpy().copy() for name in names}
        if self._hyperparameters.normalize_rewards:
            head = f"value.{len(self.policy_spec.hidden)}"
            for name in (f"{head}.weight", f"{head}.bias"):
                values[name] *= np.float32(self._returns.deviation)
        return self.acting_parameters() | values

    @torch.no_grad()
    def update(self, batch: Batch, progress: float = 0.0) -> Metrics:
        """One round of PPO: advantages once, then epochs of minibatches.

        Args:
            batch: acted by policies of this learner.
            progress: of training, from 0 to 1; Linear schedules fall with it.

        Raises:
            Diverged: batch, losses, gradients or parameters hold NaN or infinity.
            ValueError: no step of the batch is valid.

        """
        ppo = self._hyperparameters
        _refuse_nonfinite(batch)
        if batch.steps == 0:
            raise ValueError("a batch without a valid step has nothing to learn from")
        left = min(max(1.0 - progress, 0.0), 1.0)
        learning_rate = ppo.learning_rate * (left if ppo.learning_rate_schedule == "Linear" else 1.0)
        clip = ppo.clip_range * (left if ppo.clip_range_schedule == "Linear" else 1.0)

        observation, samples, explained = self._samples(batch)
        action = self._to_device(batch.action[batch.valid])
        count = len(observation)
        # Equal parts, for a small remainder would be a step of noise as long as the others.
        minibatches = max(1, round(count / ppo.minibatch_size))
        edges = [count * i // minibatches for i in range(minibatches + 1)]
        measured: list[Tensor] = []
        epochs = 0
        for epoch in range(ppo.epochs):
            order = torch.randperm(count, generator=self._generator).to(self._device)
            shuffled = observation[order], action[order], samples[:, order]
            measures = ppo.target_kl is not None or epoch == ppo.epochs - 1
            measured.clear()
            for first, last in itertools.pairwise(edges):
                part = shuffled[0][first:last], shuffled[1][first:last], Samples(*shuffled[2][:, first:last])
                losses = self.gradients(*part, clip, measures)
                norm = self.parameters.clip_gradient(ppo.max_grad_norm)
                self._adam.step(learning_rate)
                if measures:
                    measured.append(torch.stack([*losses, norm]))
            epochs += 1
            if ppo.target_kl is not None and self._mean(measured)[3] > 1.5 * ppo.target_kl:
                break

        # Actors saw the batch by the statistics before it; the next ones see the next by those after.
        if ppo.normalize_observations:
            self._observations.add(batch.observation[batch.valid])
        means = self._mean(measured)
        if not (np.isfinite(means).all() and bool(self.parameters.vector.sum().isfinite())):
            raise Diverged(
                f"training diverged: loss, gradient or parameters hold NaN or infinity (policy loss "
                f"{means[0]:.3g}, value loss {means[1]:.3g}, gradient norm {means[5]:.3g}); lower "
                f"algorithm.ppo.learningRate ({ppo.learning_rate:g}) or set normalizeRewards"
            )
        policy_loss, value_loss, entropy, kl, clipped, norm = (float(mean) for mean in means)
        return Metrics(
            policy_loss, value_loss, entropy, kl, clipped, norm, explained, learning_rate, clip, epochs
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that `load_state_dict` needs to go on exactly; copies in main memory."""
        with torch.no_grad():
            return {
                **{name: value.cpu().clone() for name, value in self.parameters.value.items()},
                "adam.first": self._adam.first.cpu().clone(),
                "adam.second": self._adam.second.cpu().clone(),
                "adam.steps": torch.tensor(self._adam.steps),
                "generator": self._generator.get_state(),
                **{f"observation.{name}": value for name, value in self._observations.state_dict().items()},
                **{f"reward.{name}": value for name, value in self._returns.state_dict().items()},
            }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was called.

        Raises:
            ValueError: the state is of another network.

        """
        own = {name: value.shape for name, value in self.parameters.value.items()}
        found = {name: value.shape for name, value in state.items() if name.startswith(NETWORK)}
        if found != own:
            raise ValueError("the state is of another network than algorithm.network and the spaces give")
        with torch.no_grad():
            for name, value in self.parameters.value.items():
                value.copy_(state[name])
            self._adam.first.copy_(state["adam.first"])
            self._adam.second.copy_(state["adam.second"])
        self._adam.steps = int(state["adam.steps"])
        self._generator.set_state(state["generator"])
        self._observations.load_state_dict(within("observation.", state))
        self._returns.load_state_dict(within("reward.", state))

    def _samples(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """Valid observations (B, features), the rows of `Samples` (4, B), and the explained variance."""
        ppo = self._hyperparameters
        steps, width = batch.valid.shape
        seen = np.concatenate(
            [
                batch.observation.reshape(steps * width, -1),
                batch.last_observation,
                batch.final_observation,
            ]
        )
        if ppo.normalize_observations:
            seen = self._observations.normalize(seen)
        everything = self._to_device(seen)
        values = self._value.forward(everything).squeeze(1).cpu().numpy()
        value, last, final = np.split(values, [steps * width, steps * width + width])
        following = np.concatenate([value, last])[width:]
        following[batch.final_at] = final
        reward = batch.reward
        if ppo.normalize_rewards:
            reward = self._returns.scale(reward, batch.terminated | batch.truncated, batch.sources)
        advantage, target = advantages(
            reward,
            value.reshape(steps, width),
            following.reshape(steps, width),
            batch.terminated,
            batch.truncated,
            batch.valid,
            ppo.gamma,
            ppo.gae_lambda,
        )
        kept = batch.valid.ravel()
        value, target = value[kept], target.ravel()[kept]
        rows = np.stack([batch.log_probability.ravel()[kept], advantage.ravel()[kept], target, value])
        observation = everything[: steps * width]
        if not kept.all():
            observation = observation[self._to_device(np.flatnonzero(kept))]
        return observation, self._to_device(rows), explained_variance(value, target)

    def log_probability(self, observation: Tensor, action: Tensor) -> Tensor:
        """Of actions (M, A) under the policy as it is now, (M,); observations as the network reads them."""
        return self._distribution.evaluate(self._policy.forward(observation), action)

    def gradients(
        self, observation: Tensor, action: Tensor, samples: "Samples", clip: float, measures: bool
    ) -> list[Tensor]:
        """Sets the gradient of one minibatch's loss in `parameters`.

        The loss is policy loss + value_coefficient * value loss - entropy_coefficient * entropy.

        Args:
            observation: (M, features) as the network reads it.
            action: (M, A).
            samples: what else is known of them.
            clip: range of the ratio of probabilities.
            measures: give figures as well.

        Returns:
            Policy loss, value loss, entropy, approximate KL and clip fraction; empty if not asked for.

        """
        ppo, size = self._hyperparameters, len(observation)
        log_probability = self.log_probability(observation, action)
        advantage = samples.advantage
        if ppo.normalize_advantages and size > 1:
            # Per minibatch [37, 7].
            deviation, mean = torch.std_mean(advantage)
            advantage = (advantage - mean).div_(deviation + 1e-8)

        # Clipped surrogate: -min(ratio A, clip(ratio) A); where the clipped term is the smaller one, it is
        # a constant and there is no gradient [37, 8].
        log_ratio = log_probability - samples.log_probability
        ratio = log_ratio.exp()
        free = ratio * advantage
        clipped = ratio.clamp(1.0 - clip, 1.0 + clip).mul_(advantage)
        into_log_probability = torch.where(free <= clipped, free, 0.0).mul_(-1.0 / size)
        outputs = self._distribution.gradient(into_log_probability, -ppo.entropy_coefficient / size)
        self._policy.backward(outputs)

        # Value: half the mean squared error, of the worse of clipped and free if it is clipped [37, 9].
        value = self._value.forward(observation).squeeze(1)
        error = value - samples.target
        into_value = error
        if ppo.value_clip_range is not None:
            moved = value - samples.value
            held = moved.clamp(-ppo.value_clip_range, ppo.value_clip_range)
            held_error = samples.value + held - samples.target
            worse = held_error.abs() > error.abs()
            into_value = torch.where(worse, torch.where(held == moved, held_error, 0.0), error)
            error = torch.where(worse, held_error, error)
        self._value.backward((into_value * (ppo.value_coefficient / size)).unsqueeze(1))
        if not measures:
            return []
        return [
            -torch.minimum(free, clipped).mean(),
            0.5 * error.square().mean(),
            self._distribution.entropy().mean(),
            # The low-variance estimator of http://joschu.net/blog/kl-approx.html [37, 12].
            (ratio - 1.0 - log_ratio).mean(),
            ((ratio - 1.0).abs() > clip).float().mean(),
        ]

    def _mean(self, measured: Sequence[Tensor]) -> NDArray[np.float64]:
        return torch.stack(list(measured)).mean(0).double().cpu().numpy()

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)  # pyright: ignore[reportUnknownMemberType]


class Samples(NamedTuple):
    """Columns of a minibatch, (M,) each."""

    log_probability: Tensor
    advantage: Tensor
    target: Tensor
    value: Tensor


# -- Returns and advantages ------------------------------------------------------------------------------


def advantages(
    reward: Floats,
    value: Floats,
    following: Floats,
    terminated: Flags,
    truncated: Flags,
    valid: Flags,
    gamma: float,
    gae_lambda: float,
) -> tuple[Floats, Floats]:
    """Generalized advantage estimates (Schulman et al. 2015, arXiv:1506.02438, equation 16), (T, N) each.

    A terminated step is worth its reward; a truncated one bootstraps from the value of its final observation
    (Pardo et al. 2017, arXiv:1712.00378). Neither passes on what comes after.

    Args:
        reward: of each step.
        value: of each observation.
        following: value of the observation after each step.
        terminated: the episode ended in a final state.
        truncated: the episode was cut off.
        valid: False gives zero, and nothing passes through it.
        gamma: discount.
        gae_lambda: 0 is one step of bootstrapping, 1 the whole return.

    Returns:
        Advantages, and targets of the value: advantage + value.

    """
    delta = reward + np.float32(gamma) * following * ~terminated - value
    keep = np.float32(gamma * gae_lambda) * ~(terminated | truncated)
    advantage = np.zeros_like(reward)
    running = np.zeros(reward.shape[1], np.float32)
    for t in range(len(reward) - 1, -1, -1):
        running = (delta[t] + keep[t] * running) * valid[t]
        advantage[t] = running
    return advantage, advantage + value


def explained_variance(value: Floats, target: Floats) -> float:
    """1 - Var[target - value] / Var[target]; 1 is a perfect prediction, 0 a constant one, 0 if undefined."""
    spread = float(np.var(target, dtype=np.float64))
    if spread == 0.0:
        return 0.0
    return 1.0 - float(np.var(target.astype(np.float64) - value)) / spread


def _refuse_nonfinite(batch: Batch) -> None:
    columns = (
        ("reward", batch.reward),
        ("observation", batch.observation),
        ("final_observation", batch.final_observation),
        ("last_observation", batch.last_observation),
        ("log_probability", batch.log_probability),
    )
    for name, column in columns:
        # A sum is finite only if all of it is, and needs no temporary array.
        if not np.isfinite(column.sum(dtype=np.float64)):
            raise Diverged(
                f"training diverged: {name} holds NaN or infinity in what the workers played; if it is the "
                "environment's, make it give finite numbers"
            )
