"""What a learner keeps, repeats, publishes and refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fragments import elements, header, spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from ratchet_trainer.algorithms.batch import Batch, join
from ratchet_trainer.algorithms.errors import Diverged
from ratchet_trainer.algorithms.ppo import PPO
from ratchet_trainer.algorithms.statistics import DiscountedReturns, RunningStatistics
from safetensors.torch import load, save

from ratchet.api.v1alpha1.training import PPO as Hyperparameters  # noqa: N811
from ratchet.api.v1alpha1.training import Algorithm, Network
from ratchet.experience import Fragment
from ratchet.policies import Actor, EnvironmentSpec, ServedPolicy, SpaceSpec

STEPS, COPIES = 16, 4
SPEC = EnvironmentSpec(
    observation=SpaceSpec(kind="Box", shape=(3,), low=-9.0, high=9.0),
    action=SpaceSpec(kind="Discrete", n=3, dtype="int64"),
)
EVERYTHING = {
    "normalize_observations": True,
    "normalize_rewards": True,
    "minibatch_size": 16,
    "value_clip_range": 0.2,
    "entropy_coefficient": 0.01,
}


def learner(spec: EnvironmentSpec = SPEC, seed: int = 0, hidden: tuple[int, ...] = (8,), **changes) -> PPO:
    algorithm = Algorithm(ppo=Hyperparameters(**changes), network=Network(hidden=list(hidden)), seed=seed)
    return PPO(algorithm, spec, "cpu")


def played(learner: PPO, seed: int, spec: EnvironmentSpec = SPEC) -> Batch:
    """What an actor does in random observations, with every way to end."""
    rng = np.random.default_rng(seed)
    grid = (STEPS, COPIES)
    observation = elements(spec.observation, grid, rng) + np.array(spec.observation.start)
    observation = observation.astype(spec.observation.dtype)
    actor = Actor(learner.policy_spec, learner.acting_parameters())
    acted = [actor.act(row, rng) for row in observation]
    valid = rng.random(grid) < 0.9
    terminated, truncated = (rng.random(grid) < 0.1) & valid, (rng.random(grid) < 0.1) & valid
    columns = {
        "observation": observation,
        "action": np.stack([step.action for step in acted]),
        "log_probability": np.stack([step.log_probability for step in acted]),
        "reward": rng.standard_normal(grid).astype(np.float32) * valid,
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
        "final_observation": observation.reshape(-1, *observation.shape[2:])[: truncated.sum()],
        "last_observation": observation[0],
        "episode_return": np.empty(0, np.float32),
        "episode_length": np.empty(0, np.int32),
    }
    return join([Fragment(header(n=int(valid.sum())), columns)], spec)


def same(one: PPO, other: PPO) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_served_value_is_in_the_rewards_of_the_environment():
    scaled, plain = learner(normalize_rewards=True), learner(normalize_rewards=False)
    for i in range(3):
        scaled.update(played(scaled, i), i / 6)
    plain.load_state_dict(scaled.state_dict())
    observation = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)

    served, as_learned = (
        ServedPolicy.of("", ppo.policy_spec, ppo.served_parameters()).outputs(observation).value
        for ppo in (scaled, plain)
    )

    deviation = float(scaled.state_dict()["reward.variance"][0]) ** 0.5
    assert abs(deviation - 1) > 0.05
    np.testing.assert_allclose(served, np.asarray(as_learned) * deviation, rtol=1e-4)


def test_a_saved_learner_goes_on_bit_for_bit():
    original, restored = learner(**EVERYTHING), learner(seed=9, **EVERYTHING)
    for i in range(3):
        original.update(played(original, i), i / 6)

    restored.load_state_dict(load(save(original.state_dict())))

    assert same(original, restored)
    for i in range(3, 6):
        batch = played(original, i)
        assert original.update(batch, i / 6) == restored.update(batch, i / 6)
    assert same(original, restored)


def test_a_state_is_a_copy():
    ours = learner(**EVERYTHING)
    ours.update(played(ours, 0), 0.0)
    state = ours.state_dict()
    before = {name: value.clone() for name, value in state.items()}

    ours.update(played(ours, 1), 0.0)

    assert all(torch.equal(state[name], before[name]) for name in state)
    restored = learner(**EVERYTHING)
    restored.load_state_dict(state)
    restored.update(played(restored, 1), 0.0)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_a_seed_gives_the_same_learner_whatever_else_draws_from_torch():
    first = learner(seed=4)
    first.update(played(first, 0), 0.0)
    torch.manual_seed(1234)
    torch.rand(7)
    second = learner(seed=4)
    second.update(played(second, 0), 0.0)

    assert same(first, second)


def test_another_seed_gives_another_learner():
    assert not same(learner(seed=1), learner(seed=2))


@pytest.mark.parametrize(
    ("spec", "hidden"),
    [
        (SPEC, (9,)),
        (SPEC, (8, 8)),
        (SPEC.model_copy(update={"action": SpaceSpec(kind="Discrete", n=4, dtype="int64")}), (8,)),
        (SPEC.model_copy(update={"action": SpaceSpec(kind="Box", shape=(3,), low=-1, high=1)}), (8,)),
        (SPEC.model_copy(update={"observation": SpaceSpec(kind="Box", shape=(5,))}), (8,)),
    ],
)
def test_the_state_of_another_network_is_refused_and_changes_nothing(spec, hidden):
    ours, before = learner(), learner()
    other = learner(spec, hidden=hidden)

    for one, state in ((ours, other.state_dict()), (other, ours.state_dict())):
        with pytest.raises(ValueError, match="another network"):
            one.load_state_dict(state)

    assert same(ours, before)


@pytest.mark.parametrize(
    "column", ["observation", "final_observation", "last_observation", "reward", "log_probability"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_a_batch_is_divergence(column, value):
    """Where it would be clipped or squashed to a finite number, too."""
    ours = learner(**EVERYTHING)
    batch = played(ours, 0)
    broken = getattr(batch, column).copy()
    broken[1, 1] = value

    with pytest.raises(Diverged, match=column):
        ours.update(replace(batch, **{column: broken}), 0.0)


def test_a_loss_that_overflows_is_divergence():
    ours = learner()
    batch = played(ours, 0)

    with pytest.raises(Diverged, match="learningRate"):
        ours.update(replace(batch, reward=batch.reward * np.float32(1e30)), 0.0)


def test_an_infinite_parameter_is_divergence_though_no_loss_shows_it():
    ours = learner()
    batch = played(ours, 0)
    ours.parameters.value["policy.0.bias"][0] = np.inf

    with pytest.raises(Diverged, match="parameters"):
        ours.update(batch, 0.0)


def test_a_batch_without_a_valid_step_is_refused():
    ours = learner()
    batch = played(ours, 0)

    with pytest.raises(ValueError, match="valid step"):
        ours.update(replace(batch, valid=np.zeros_like(batch.valid)), 0.0)


@pytest.mark.parametrize(("progress", "left"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (1.5, 0.0)])
def test_linear_schedules_fall_to_zero(progress, left):
    ours = learner(
        learning_rate=0.01,
        clip_range=0.3,
        learning_rate_schedule="Linear",
        clip_range_schedule="Linear",
    )
    before = ours.acting_parameters()

    metrics = ours.update(played(ours, 0), progress)

    assert metrics.learning_rate == pytest.approx(0.01 * left)
    assert metrics.clip_range == pytest.approx(0.3 * left)
    moved = any((before[name] != value).any() for name, value in ours.acting_parameters().items())
    assert moved == (left > 0)


def test_constant_schedules_stay():
    ours = learner(learning_rate=0.01, clip_range=0.3)

    metrics = ours.update(played(ours, 0), 0.9)

    assert (metrics.learning_rate, metrics.clip_range) == (0.01, 0.3)


def test_a_policy_that_moved_far_ends_the_epochs():
    free, held, patient = (
        learner(epochs=10, learning_rate=0.05, target_kl=target) for target in (None, 1e-4, 100.0)
    )
    batch = played(free, 0)

    assert free.update(batch, 0.0).epochs == 10
    stopped = held.update(batch, 0.0)
    assert stopped.epochs < 10
    assert stopped.approx_kl > 1.5e-4
    assert patient.update(batch, 0.0).epochs == 10
    assert same(free, patient)


def test_parameters_are_published_with_the_statistics_of_all_valid_observations():
    ours = learner(normalize_observations=True)
    batches = [played(ours, 0)]
    assert (ours.acting_parameters()["observation.mean"] == 0).all()
    ours.update(batches[0], 0.0)
    batches.append(played(ours, 1))
    ours.update(batches[1], 0.0)

    published = ours.acting_parameters()

    seen = np.concatenate([batch.observation[batch.valid] for batch in batches]).astype(np.float64)
    np.testing.assert_allclose(published["observation.mean"], seen.mean(0), 1e-5)
    np.testing.assert_allclose(published["observation.variance"], seen.var(0), 1e-5)


def test_an_actors_log_probabilities_give_ratios_of_one():
    """What was acted with the published statistics is learned from with the same ones."""
    ours = learner(epochs=1, minibatch_size=1000, normalize_observations=True)
    ours.update(played(ours, 0), 0.0)

    metrics = ours.update(played(ours, 1), 0.0)

    assert metrics.clip_fraction == 0.0
    assert metrics.approx_kl == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(spaces(), spaces(action=True), st.booleans(), st.sampled_from(["Tanh", "ReLU"]), st.integers(0, 999))
def test_actor_and_learner_agree_on_log_probabilities(observation, action, normalize, activation, seed):
    spec = EnvironmentSpec(observation=observation, action=action)
    network = Network(hidden=[8, 8], activation=activation)
    ours = PPO(Algorithm(ppo=Hyperparameters(normalize_observations=normalize), network=network), spec, "cpu")
    generator = torch.Generator().manual_seed(seed)
    ours.parameters.vector.add_(torch.randn(ours.parameters.vector.shape, generator=generator) * 0.2)
    if normalize:
        ours.update(played(ours, seed, spec), 0.0)

    batch = played(ours, seed + 1, spec)

    rows = batch.observation.reshape(STEPS * COPIES, -1)
    if normalize:
        statistics = RunningStatistics(observation.features)
        state = ours.state_dict()
        statistics.load_state_dict(
            {name: state[f"observation.{name}"] for name in ("mean", "variance", "count")}
        )
        rows = statistics.normalize(rows)
    computed = ours.log_probability(
        torch.from_numpy(rows), torch.from_numpy(batch.action.reshape(len(rows), -1))
    )
    np.testing.assert_allclose(computed.numpy(), batch.log_probability.ravel(), rtol=1e-5, atol=1e-5)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 999))
def test_running_statistics_are_those_of_everything_at_once(sizes, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((size, 3)) * 3 + 100 for size in sizes]
    statistics = RunningStatistics(3)

    for part in parts:
        statistics.add(part)

    everything = np.concatenate(parts)
    if len(everything):
        np.testing.assert_allclose(statistics.mean, everything.mean(0), 1e-9)
        np.testing.assert_allclose(statistics.variance, everything.var(0), 1e-7, 1e-9)


def test_discounted_returns_go_on_from_fragment_to_fragment_of_the_same_worker():
    rng = np.random.default_rng(0)
    reward = rng.standard_normal((8, 3)).astype(np.float32)
    ended = rng.random((8, 3)) < 0.2
    whole, halves = DiscountedReturns(0.9), DiscountedReturns(0.9)

    whole.scale(reward, ended, [("a", 2), ("b", 1)])
    halves.scale(reward[:4], ended[:4], [("a", 2), ("b", 1)])
    # In the other order, as fragments of the next batch may lie.
    halves.scale(reward[4:, [2, 0, 1]], ended[4:, [2, 0, 1]], [("b", 1), ("a", 2)])

    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value)


def test_rewards_are_scaled_by_the_deviation_of_discounted_returns():
    reward = np.array([[1.0], [2.0], [4.0]], np.float32)
    ended = np.array([[False], [True], [False]])

    scaled = DiscountedReturns(0.5).scale(reward, ended, [("a", 1)])

    np.testing.assert_allclose(scaled, reward / np.std([1.0, 2.5, 4.0]), 1e-6)
