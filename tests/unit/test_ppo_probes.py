"""PPO learns what the smallest environments ask, each of which fails for one reason only.

After the probe environments of Andy Jones, «Debugging RL, Without the Agonizing Pain» (2021). Each is a rule
over arrays of environments, played by the same `Actor` as in rollout workers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fragments import header
from ratchet_trainer.algorithms.batch import join
from ratchet_trainer.algorithms.ppo import PPO

from ratchet.api.v1alpha1.training import PPO as Hyperparameters  # noqa: N811
from ratchet.api.v1alpha1.training import Algorithm, Network
from ratchet.experience import Fragment
from ratchet.policies import Actor, EnvironmentSpec, SpaceSpec

STEPS, COPIES, GAMMA = 16, 16, 0.5
TWO = SpaceSpec(kind="Discrete", n=2, dtype="int64")
Array = np.ndarray


class Outcome(NamedTuple):
    """Of one step of all copies, (COPIES,) each; an ended episode starts anew in the same step."""

    reward: Array
    terminated: Array
    truncated: Array
    successor: Array


class Probe(NamedTuple):
    start: Callable[[np.random.Generator], Array]
    step: Callable[[Array, Array], Outcome]
    action: SpaceSpec = TWO
    resets: bool = False


def ends(reward: Array, truncated: bool = False) -> Outcome:
    """Every episode is over, and goes on as it was if only its time is."""
    yes = np.ones(COPIES, bool)
    return Outcome(reward, yes & (not truncated), yes & truncated, np.ones(COPIES, np.float32))


def constant(rng: np.random.Generator) -> Array:
    return np.ones(COPIES, np.float32)


def zero(rng: np.random.Generator) -> Array:
    return np.zeros(COPIES, np.float32)


def sign(rng: np.random.Generator) -> Array:
    return rng.choice(np.array([-1, 1], np.float32), COPIES)


def play(probe: Probe, actor: Actor, rng: np.random.Generator, observation: Array) -> tuple[Fragment, Array]:
    """A fragment, and the observations that the next one starts from."""
    rows: dict[str, list[Array]] = {
        name: []
        for name in ("observation", "action", "log_probability", "reward", "terminated", "truncated", "valid")
    }
    final: list[Array] = []
    resetting = np.zeros(COPIES, bool)
    for _ in range(STEPS):
        actions = actor.act(observation[:, None], rng)
        outcome = probe.step(observation, actions.action)
        valid, ended = ~resetting, (outcome.terminated | outcome.truncated) & ~resetting
        truncated = outcome.truncated & valid
        columns = (
            observation[:, None],
            actions.action,
            actions.log_probability,
            outcome.reward * valid,
            outcome.terminated & valid,
            truncated,
            valid,
        )
        for row, column in zip(rows.values(), columns, strict=True):
            row.append(column)
        final.append(outcome.successor[truncated])
        # With steps that are only resets, the successor is seen once more before the next start.
        anew = resetting if probe.resets else ended
        observation = np.where(anew, probe.start(rng), np.where(valid, outcome.successor, observation))
        resetting = ended & probe.resets
    columns = {name: np.stack(row) for name, row in rows.items()}
    columns["reward"] = columns["reward"].astype(np.float32)
    columns["final_observation"] = np.concatenate(final)[:, None].astype(np.float32)
    columns["last_observation"] = observation[:, None].astype(np.float32)
    columns["episode_return"], columns["episode_length"] = np.empty(0, np.float32), np.empty(0, np.int32)
    return Fragment(header(n=int(columns["valid"].sum())), columns), observation.astype(np.float32)


class Trained(NamedTuple):
    learner: PPO

    def value(self, observation: float) -> float:
        """By the definition of the network, in numpy."""
        x = np.array([observation], np.float32)
        state = {name: value.numpy() for name, value in self.learner.state_dict().items()}
        if self.learner.policy_spec.normalizes_observations:
            deviation = np.sqrt(state["observation.variance"] + 1e-8)
            x = ((x - state["observation.mean"]) / deviation).clip(-10, 10)
        hidden = np.tanh(state["value.0.weight"] @ x + state["value.0.bias"])
        return (state["value.1.weight"] @ hidden + state["value.1.bias"]).item()

    def chooses(self, observation: float) -> Array:
        """The most likely action."""
        actor = Actor(self.learner.policy_spec, self.learner.acting_parameters())
        rows = np.array([[observation]], np.float32)
        return actor.act(rows, np.random.default_rng(0), deterministic=True).action[0]


def train(probe: Probe, updates: int = 80, **changes) -> Trained:
    values = {
        "learning_rate": 0.01,
        "epochs": 4,
        "minibatch_size": 64,
        "gamma": GAMMA,
        "learning_rate_schedule": "Linear",
        **changes,
    }
    spec = EnvironmentSpec(
        observation=SpaceSpec(kind="Box", shape=(1,), low=-9.0, high=9.0), action=probe.action
    )
    learner = PPO(Algorithm(ppo=Hyperparameters(**values), network=Network(hidden=[16])), spec, "cpu")
    rng = np.random.default_rng(0)
    observation = probe.start(rng)
    for update in range(updates):
        actor = Actor(learner.policy_spec, learner.acting_parameters())
        fragment, observation = play(probe, actor, rng, observation)
        learner.update(join([fragment], spec), update / updates)
    return Trained(learner)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A second thread of torch only waits for the first, for minibatches as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def near(value: float) -> object:
    return pytest.approx(value, abs=0.1)


def test_value_of_a_constant_observation_is_its_reward():
    trained = train(Probe(constant, lambda seen, _: ends(np.ones(COPIES))))

    assert trained.value(1) == near(1)


def test_value_depends_on_the_observation():
    trained = train(Probe(sign, lambda seen, _: ends(seen)))

    assert trained.value(1) == near(1)
    assert trained.value(-1) == near(-1)


def two_steps(seen: Array, action: Array) -> Outcome:
    """From 0 to 1, which pays and ends."""
    no = np.zeros(COPIES, bool)
    return Outcome(seen, seen == 1, no, np.ones(COPIES, np.float32))


def test_what_comes_later_is_discounted():
    trained = train(Probe(zero, two_steps))

    assert trained.value(1) == near(1)
    assert trained.value(0) == near(GAMMA)


def test_resets_are_not_learned_from():
    """Without `valid`, a reset's step at 1 would pay nothing and lead to 0 instead of ending."""
    trained = train(Probe(zero, two_steps, resets=True))

    assert trained.value(1) == near(1)
    assert trained.value(0) == near(GAMMA)


def test_truncation_bootstraps():
    trained = train(Probe(constant, lambda seen, _: ends(np.ones(COPIES), truncated=True)))

    assert trained.value(1) == near(1 / (1 - GAMMA))


def test_truncation_bootstraps_from_where_the_episode_was_and_not_from_the_next_start():
    """From 0 to 1, cut off there; 1 pays 1 and ends when it is where the episode began."""

    def step(seen: Array, action: Array) -> Outcome:
        return Outcome(seen, seen == 1, seen == 0, np.ones(COPIES, np.float32))

    trained = train(Probe(lambda rng: (sign(rng) + 1) / 2, step))

    assert trained.value(1) == near(1)
    assert trained.value(0) == near(GAMMA)


def test_the_better_action_is_found():
    trained = train(Probe(constant, lambda _, action: ends(np.where(action == 1, 1.0, -1.0))))

    assert trained.chooses(1) == 1
    assert trained.value(1) > 0.8


def test_the_action_depends_on_the_observation():
    trained = train(Probe(sign, lambda seen, action: ends(np.where((seen > 0) == (action == 1), 1.0, -1.0))))

    assert (trained.chooses(1), trained.chooses(-1)) == (1, 0)
    assert trained.value(1) > 0.8
    assert trained.value(-1) > 0.8


def test_each_component_of_an_action_is_credited():
    space = SpaceSpec(kind="MultiDiscrete", shape=(2,), nvec=(3, 2), dtype="int64")
    trained = train(Probe(constant, lambda _, a: ends((a[:, 0] == 2) + (a[:, 1] == 0) - 1.0), space))

    np.testing.assert_array_equal(trained.chooses(1), [2, 0])


def test_coins_depend_on_the_observation():
    space = SpaceSpec(kind="MultiBinary", shape=(2,), dtype="int8")

    def step(seen: Array, action: Array) -> Outcome:
        return ends((action[:, 0] == (seen > 0)) + (action[:, 1] == 1) - 1.0)

    trained = train(Probe(sign, step, space))

    np.testing.assert_array_equal(trained.chooses(1), [1, 1])
    np.testing.assert_array_equal(trained.chooses(-1), [0, 1])


def test_a_continuous_action_follows_the_observation():
    space = SpaceSpec(kind="Box", shape=(1,), low=-2.0, high=2.0)
    trained = train(Probe(sign, lambda seen, a: ends(-((a[:, 0] - 0.5 * seen) ** 2)), space), updates=120)

    assert trained.chooses(1)[0] == pytest.approx(0.5, abs=0.15)
    assert trained.chooses(-1)[0] == pytest.approx(-0.5, abs=0.15)


def test_observations_far_from_zero_are_told_apart_when_normalized():
    probe = Probe(
        lambda rng: 1000 + sign(rng),
        lambda seen, action: ends(np.where((seen > 1000) == (action == 1), 1.0, -1.0)),
    )
    trained = train(probe, normalize_observations=True)

    assert (trained.chooses(1001), trained.chooses(999)) == (1, 0)


def test_rewards_of_any_size_are_learned_from_when_normalized():
    probe = Probe(constant, lambda _, action: ends(np.where(action == 1, 1e6, -1e6)))
    trained = train(probe, normalize_rewards=True)

    assert trained.chooses(1) == 1
    assert 0.5 < trained.value(1) < 10
