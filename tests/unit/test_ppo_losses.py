"""Losses, gradients and optimizer steps are those of autograd, `torch.distributions` and `torch.optim`."""

import math

import numpy as np
import pytest
import torch
from ratchet_trainer.algorithms.batch import Batch
from ratchet_trainer.algorithms.network import Adam, Parameters
from ratchet_trainer.algorithms.ppo import PPO, Samples, advantages
from torch.nn.functional import linear

from ratchet.api.v1alpha1.training import PPO as Hyperparameters  # noqa: N811
from ratchet.api.v1alpha1.training import Algorithm, Network
from ratchet.policies import EnvironmentSpec, SpaceSpec

SPACES = {
    "Discrete": SpaceSpec(kind="Discrete", n=3, dtype="int64"),
    "MultiDiscrete": SpaceSpec(kind="MultiDiscrete", shape=(3,), nvec=(2, 4, 3), dtype="int64"),
    "MultiBinary": SpaceSpec(kind="MultiBinary", shape=(3,), dtype="int8"),
    "Box": SpaceSpec(kind="Box", shape=(2,), low=-1.0, high=1.0),
}
OBSERVATION = SpaceSpec(kind="Box", shape=(5,), low=-9.0, high=9.0)
CLIP, ROWS = 0.2, 96


def learner_for(kind: str, network: Network | None = None, **hyperparameters) -> PPO:
    """Its parameters are random enough for ratios on both sides of the clip."""
    algorithm = Algorithm(ppo=Hyperparameters(**hyperparameters), network=network or Network(hidden=[7, 6]))
    learner = PPO(algorithm, EnvironmentSpec(observation=OBSERVATION, action=SPACES[kind]), "cpu")
    generator = torch.Generator().manual_seed(3)
    learner.parameters.vector.add_(torch.randn(learner.parameters.vector.shape, generator=generator) * 0.3)
    return learner


def actions(kind: str, rng: np.random.Generator, *leading: int) -> np.ndarray:
    space = SPACES[kind]
    if kind == "Box":
        return rng.standard_normal((*leading, space.size)).astype(np.float32)
    highest = 2 if kind == "MultiBinary" else space.nvec or space.n
    return rng.integers(0, highest, (*leading, space.size))


class Reference:
    """The same network and loss in float64, as a textbook writes them."""

    def __init__(self, learner: PPO, kind: str, activation: str = "Tanh") -> None:
        self.values = {
            name: value.double().requires_grad_() for name, value in learner.parameters.value.items()
        }
        self._kind = kind
        self._activation = torch.tanh if activation == "Tanh" else torch.relu

    def outputs(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = x.double()
        layers = sum(key.startswith(name) and key.endswith("weight") for key in self.values)
        for i in range(layers):
            x = linear(x, self.values[f"{name}.{i}.weight"], self.values[f"{name}.{i}.bias"])
            x = self._activation(x) if i < layers - 1 else x
        return x

    def policy(self, observation: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies."""
        outputs = self.outputs("policy", observation)
        if self._kind == "Box":
            each = torch.distributions.Normal(outputs, self.values["log_std"].exp())
        elif self._kind == "MultiBinary":
            each = torch.distributions.Bernoulli(logits=outputs)
        else:
            counts = SPACES[self._kind].nvec or (SPACES[self._kind].n,)
            parts = [torch.distributions.Categorical(logits=part) for part in outputs.split(counts, 1)]
            return (
                sum(part.log_prob(action[:, i]) for i, part in enumerate(parts)),
                sum(part.entropy() for part in parts),
            )
        return each.log_prob(action.double()).sum(1), each.entropy().sum(1).expand(len(outputs))

    def losses(self, observation, action, samples, ppo: Hyperparameters, clip: float = CLIP):
        """Policy loss, value loss, entropy, approximate KL, clip fraction; and what is minimized."""
        old, advantage, target, before = (column.double() for column in samples)
        if ppo.normalize_advantages:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_probability, entropy = self.policy(observation, action)
        ratio = torch.exp(log_probability - old)
        policy = -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
        value = self.outputs("value", observation)[:, 0]
        squares = (value - target) ** 2
        if ppo.value_clip_range is not None:
            held = before + (value - before).clamp(-ppo.value_clip_range, ppo.value_clip_range)
            squares = torch.max(squares, (held - target) ** 2)
        value_loss = 0.5 * squares.mean()
        total = policy + ppo.value_coefficient * value_loss - ppo.entropy_coefficient * entropy.mean()
        kl = (ratio - 1 - torch.log(ratio)).mean()
        clipped = ((ratio - 1).abs() > clip).double().mean()
        return [policy, value_loss, entropy.mean(), kl, clipped], total

    def gradients(self, total: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(total, list(self.values.values()))
        return dict(zip(self.values, found, strict=True))


def minibatch(learner: PPO, kind: str) -> tuple[torch.Tensor, torch.Tensor, Samples]:
    rng = np.random.default_rng(1)
    observation = torch.from_numpy(rng.standard_normal((ROWS, 5)).astype(np.float32))
    action = torch.from_numpy(actions(kind, rng, ROWS))
    drift, advantage, target, before = torch.from_numpy(rng.standard_normal((4, ROWS)).astype(np.float32))
    old = learner.log_probability(observation, action) + 0.3 * drift
    return observation, action, Samples(old, advantage + 0.5, target, before * 0.5)


def assert_same(learner: PPO, reference: Reference, kind: str, ppo: Hyperparameters) -> None:
    observation, action, samples = minibatch(learner, kind)

    measured = learner.gradients(observation, action, samples, CLIP, measures=True)

    expected, total = reference.losses(observation, action, samples, ppo)
    assert 0.2 < measured[4] < 0.8, "some ratios are clipped and some are not"
    np.testing.assert_allclose([m.item() for m in measured], [e.item() for e in expected], 1e-4, 1e-6)
    for name, gradient in reference.gradients(total).items():
        found = learner.parameters.gradient[name].numpy()
        np.testing.assert_allclose(found, gradient.numpy(), 1e-3, 2e-6, err_msg=name)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("value_clip_range", [None, 0.2])
@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.3])
@pytest.mark.parametrize("normalize_advantages", [True, False])
def test_losses_and_gradients_are_those_of_autograd(
    kind, value_clip_range, entropy_coefficient, normalize_advantages
):
    ppo = Hyperparameters(
        value_clip_range=value_clip_range,
        entropy_coefficient=entropy_coefficient,
        normalize_advantages=normalize_advantages,
        value_coefficient=0.7,
    )
    learner = learner_for(kind, **ppo.model_dump())

    assert_same(learner, Reference(learner, kind), kind, ppo)


@pytest.mark.parametrize("activation", ["Tanh", "ReLU"])
@pytest.mark.parametrize("hidden", [[4], [4, 8, 5]])
def test_gradients_of_networks_of_other_forms(activation, hidden):
    learner = learner_for("Discrete", Network(hidden=hidden, activation=activation))

    assert_same(learner, Reference(learner, "Discrete", activation), "Discrete", Hyperparameters())


def test_measuring_changes_no_gradient():
    learner = learner_for("Discrete")
    part = minibatch(learner, "Discrete")

    learner.gradients(*part, CLIP, measures=True)
    measured = learner.parameters.gradient_vector.clone()
    assert learner.gradients(*part, CLIP, measures=False) == []

    assert torch.equal(measured, learner.parameters.gradient_vector)


def test_a_single_sample_is_not_normalized():
    learner = learner_for("Discrete")
    observation, action, samples = minibatch(learner, "Discrete")
    one = Samples(*(column[:1] for column in samples))

    losses = learner.gradients(observation[:1], action[:1], one, CLIP, measures=True)

    assert all(math.isfinite(float(loss)) for loss in losses)


def vector(size: int) -> Parameters:
    return Parameters({"weight": (size - 2,), "bias": (2,)}, torch.device("cpu"))


def test_adam_is_torch_optim_adam():
    parameters, generator = vector(50), torch.Generator().manual_seed(0)
    theirs = torch.zeros(50, requires_grad=True)
    adam, torch_adam = Adam(parameters), torch.optim.Adam([theirs], eps=1e-5)
    for step in range(1, 200):
        learning_rate = 0.1 / step
        theirs.grad = torch.randn(50, generator=generator) * 10.0 ** (step % 7 - 5)
        parameters.gradient_vector.copy_(theirs.grad)
        for group in torch_adam.param_groups:
            group["lr"] = learning_rate

        adam.step(learning_rate)
        torch_adam.step()

        torch.testing.assert_close(parameters.vector, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0.0, 0.1, 0.5, 20.0])
def test_clipping_is_clip_grad_norm(length):
    parameters = vector(20)
    direction = torch.randn(20, generator=torch.Generator().manual_seed(0))
    theirs = torch.zeros(20, requires_grad=True)
    theirs.grad = direction / direction.norm() * length
    parameters.gradient_vector.copy_(theirs.grad)

    norm = parameters.clip_gradient(0.5)
    expected = torch.nn.utils.clip_grad_norm_([theirs], 0.5)

    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(parameters.gradient_vector, theirs.grad)


@pytest.mark.parametrize("kind", SPACES)
def test_a_whole_update_is_that_of_autograd_and_torch_optim(kind):
    """Every step is in the one minibatch of each epoch, so that its order makes no difference."""
    ppo = Hyperparameters(
        epochs=3, minibatch_size=1000, learning_rate=0.01, max_grad_norm=0.3, entropy_coefficient=0.01
    )
    learner = learner_for(kind, **ppo.model_dump())
    reference = Reference(learner, kind)
    batch = played(kind)

    metrics = learner.update(batch, 0.0)

    observation = torch.from_numpy(batch.observation)

    def values(x: np.ndarray) -> np.ndarray:
        return reference.outputs("value", torch.from_numpy(x))[..., 0].detach().numpy().astype(np.float32)

    after = np.concatenate([values(batch.observation)[1:], values(batch.last_observation)[None]])
    after[batch.truncated] = values(batch.final_observation)
    ends = batch.terminated, batch.truncated, batch.valid
    advantage, target = advantages(batch.reward, values(batch.observation), after, *ends, 0.99, 0.95)
    columns = batch.log_probability, advantage, target, values(batch.observation)
    samples = Samples(*(torch.from_numpy(column[batch.valid]) for column in columns))
    adam = torch.optim.Adam(reference.values.values(), lr=0.01, eps=1e-5)
    for _ in range(3):
        rows = observation[batch.valid], torch.from_numpy(batch.action[batch.valid])
        losses, total = reference.losses(*rows, samples, ppo)
        adam.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.values.values(), 0.3)
        adam.step()
    got = [metrics.policy_loss, metrics.value_loss, metrics.entropy, metrics.approx_kl]
    np.testing.assert_allclose(got, [loss.item() for loss in losses[:4]], 2e-3, 1e-5)
    assert metrics.gradient_norm == pytest.approx(float(norm), rel=1e-3)
    for name, value in reference.values.items():
        torch.testing.assert_close(
            learner.parameters.value[name].double(), value.detach(), rtol=1e-3, atol=1e-4, msg=name
        )


def played(kind: str) -> Batch:
    """Random, with every way to end and resets between."""
    rng = np.random.default_rng(5)
    grid = (16, 6)
    valid = rng.random(grid) < 0.9
    terminated, truncated = (rng.random(grid) < 0.1) & valid, (rng.random(grid) < 0.1) & valid
    return Batch(
        observation=rng.standard_normal((*grid, 5)).astype(np.float32),
        action=actions(kind, rng, *grid),
        log_probability=-rng.random(grid, np.float32) * 2,
        reward=rng.standard_normal(grid).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        final_observation=rng.standard_normal((truncated.sum(), 5)).astype(np.float32),
        final_at=np.flatnonzero(truncated),
        last_observation=rng.standard_normal((grid[1], 5)).astype(np.float32),
        sources=(("a1b2", 6),),
    )
