"""What the policy saw and did is what happened, in each autoreset mode and each way to vectorize."""

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ratchet_rollout.actor import Player
from ratchet_rollout.environments import Environments, make
from ratchet_rollout.errors import ConfigError, Interrupted
from ratchet_rollout.evaluation import evaluate
from ratchet_rollout.spaces import describe
from rolloutprobes import Counter, Endless, ShortOrLong, VectorCounter, expected

from ratchet.api.v1alpha1.training import Environment
from ratchet.experience import Fragment, Header, decode, encode
from ratchet.policies import Actor, PolicySpec, UnsupportedSpace, parameter_shapes

COPIES = 3


def sync(mode: AutoresetMode, copy: bool) -> Environments:
    return Environments(
        SyncVectorEnv([lambda i=i: Counter(i) for i in range(COPIES)], copy=copy, autoreset_mode=mode)
    )


# SyncVectorEnv can't keep the last observation of an environment that reuses its arrays in SAME_STEP: that
# combination is never built here, and is left out.
KINDS: dict[str, Callable[[], Environments]] = {
    "sync next step": lambda: sync(AutoresetMode.NEXT_STEP, False),
    "sync next step, copied": lambda: sync(AutoresetMode.NEXT_STEP, True),
    "sync disabled": lambda: sync(AutoresetMode.DISABLED, False),
    "sync disabled, copied": lambda: sync(AutoresetMode.DISABLED, True),
    "vector next step": lambda: Environments(VectorCounter(COPIES, AutoresetMode.NEXT_STEP)),
    "vector same step": lambda: Environments(VectorCounter(COPIES, AutoresetMode.SAME_STEP)),
    "vector same step, batched": lambda: Environments(VectorCounter(COPIES, AutoresetMode.SAME_STEP, True)),
    "vector disabled": lambda: Environments(VectorCounter(COPIES, AutoresetMode.DISABLED)),
}


def policy(environments: Environments, preferred: int | None = None) -> Actor:
    spec = PolicySpec(observation=environments.spec.observation, action=environments.spec.action, hidden=(2,))
    values = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    if preferred is not None:
        values["policy.1.bias"][preferred] = 50
    return Actor(spec, values)


@pytest.mark.parametrize("fragments", [(14,), (1,) * 14, (5, 9), (2, 1, 3, 8)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fragments_tell_what_happened_wherever_they_are_cut(kind: str, fragments: tuple[int, ...]):
    environments = KINDS[kind]()
    actor = policy(environments)
    player = Player(environments, 1, np.random.SeedSequence(0))
    happened = expected(COPIES, sum(fragments), environments.autoreset_mode is AutoresetMode.NEXT_STEP)

    at = 0
    for steps in fragments:
        player._steps = steps  # pyright: ignore[reportPrivateUsage]
        columns = player.play(actor)
        span = slice(at, at + steps)
        for name in ("observation", "reward", "terminated", "truncated", "valid"):
            np.testing.assert_array_equal(columns[name], happened[name][span], err_msg=name)
        finals = [final for row in happened["final"][span] for final in row if final is not None]
        np.testing.assert_array_equal(columns["final_observation"], np.array(finals).reshape(-1, 2))
        episodes = [episode for episode in happened["episodes"] if at <= episode[0] < at + steps]
        np.testing.assert_array_equal(columns["episode_return"], [episode[2] for episode in episodes])
        np.testing.assert_array_equal(columns["episode_length"], [episode[3] for episode in episodes])
        at += steps
        n = int(columns["valid"].sum())
        decode(encode(Fragment(Header("rollout", "p/0", "x", 1, 1, 1, n, 0.0, 0.0), columns)))
    np.testing.assert_array_equal(columns["last_observation"], happened["last"])


def test_the_probes_reach_every_case():
    happened = expected(COPIES, 14, True)
    rows = [
        (ended, cut)
        for terminated, truncated in zip(happened["terminated"], happened["truncated"], strict=True)
        for ended, cut in zip(terminated, truncated, strict=True)
    ]
    assert set(rows) == {(False, False), (True, False), (False, True), (True, True)}
    assert any(not valid for row in happened["valid"] for valid in row)


def test_environments_that_are_stepped_one_by_one_lose_no_step_to_resets():
    environments = make(Environment(entry_point="rolloutprobes:make_counter"), 2)
    assert environments.autoreset_mode is AutoresetMode.DISABLED
    columns = Player(environments, 20, np.random.SeedSequence(0)).play(policy(environments))
    assert columns["valid"].all()


def test_an_environment_that_vectorizes_itself_is_preferred():
    environments = make(Environment(id="CartPole-v1", max_episode_steps=7), 4)
    vector = environments._vector  # pyright: ignore[reportPrivateUsage]
    assert type(vector).__name__ == "CartPoleVectorEnv"
    assert environments.spec.reward_threshold == 475.0
    columns = Player(environments, 40, np.random.SeedSequence(0)).play(policy(environments))
    assert columns["truncated"].any()
    assert columns["episode_length"].max() == 7
    assert not columns["valid"].all()


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0"])
def test_max_episode_steps_of_the_job_wins(name: str):
    environments = make(Environment(id=name, max_episode_steps=5), 2)
    columns = Player(environments, 20, np.random.SeedSequence(0)).play(policy(environments))
    assert set(columns["episode_length"].tolist()) == {5}


def test_max_episode_steps_limits_an_environment_of_ones_own():
    environments = make(Environment(entry_point="rolloutprobes:Endless", max_episode_steps=6), 2)
    columns = Player(environments, 12, np.random.SeedSequence(0)).play(policy(environments, preferred=0))
    assert columns["episode_length"].tolist() == [6] * 4
    assert columns["truncated"].sum() == 4


def test_kwargs_reach_the_environment():
    environments = make(Environment(id="CartPole-v1", kwargs={"sutton_barto_reward": True}), 2)
    columns = Player(environments, 40, np.random.SeedSequence(0)).play(policy(environments))
    assert columns["reward"].min() == -1.0


def test_the_same_seed_gives_the_same_fragments():
    def play(seed: int) -> bytes:
        environments = make(Environment(id="CartPole-v1"), 4)
        player = Player(environments, 30, np.random.SeedSequence(seed))
        return b"".join(column.tobytes() for column in player.play(policy(environments)).values())

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_an_environment_takes_clipped_actions_and_the_fragment_keeps_what_was_sampled():
    box = spaces.Box(-0.1, 0.1, (2,), np.float32)
    inner = Counter(action_space=box)
    environments = Environments(SyncVectorEnv([lambda: inner], autoreset_mode=AutoresetMode.DISABLED))
    columns = Player(environments, 30, np.random.SeedSequence(0)).play(policy(environments))
    assert np.abs(columns["action"]).max() > 0.1
    assert np.abs(inner.taken).max() == np.float32(0.1)


def test_a_check_can_end_a_fragment():
    environments = make(Environment(id="CartPole-v1"), 1)

    def check() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        Player(environments, 5, np.random.SeedSequence(0)).play(policy(environments), check)


def test_truncation_without_a_final_observation_is_refused():
    class Silent(VectorCounter):
        def step(self, actions: np.ndarray):
            return (*super().step(actions)[:4], {})

    environments = Environments(Silent(1, AutoresetMode.SAME_STEP))
    with pytest.raises(ConfigError, match="final_obs"):
        Player(environments, 9, np.random.SeedSequence(0)).play(policy(environments))


# --- evaluation


@pytest.mark.parametrize("episodes", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_each_environment_plays_its_number_of_episodes(kind: str, episodes: int):
    environments = KINDS[kind]()
    result = evaluate(environments, policy(environments), episodes, seed=3, deterministic=False)
    quota = [episodes // COPIES + (i < episodes % COPIES) for i in range(COPIES)]
    happened = expected(COPIES, 30, False)["episodes"]
    wanted = [[episode for episode in happened if episode[1] == i][: quota[i]] for i in range(COPIES)]
    lengths = sorted(episode[3] for slot in wanted for episode in slot)
    returns = sorted(episode[2] for slot in wanted for episode in slot)
    assert sorted(result["episode_length"].tolist()) == lengths
    assert sorted(result["episode_return"].tolist()) == returns
    assert result["episode_return"].dtype == np.float32
    assert result["episode_length"].dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
def test_the_actions_of_an_evaluation_are_those_of_its_episodes_and_of_no_reset(kind: str):
    environments = KINDS[kind]()
    result = evaluate(environments, policy(environments), 7, 3, False, actions=True)
    taken = result["action_sum"]
    assert taken.shape == (7, 2)
    # Not one action only, which would be right by chance.
    assert taken.sum() > taken[:, 0].sum() > 0
    assert taken.sum(axis=1).tolist() == result["episode_length"].tolist()
    np.testing.assert_array_equal(result["action_squares"], taken)
    assert set(evaluate(environments, policy(environments), 7, 3, False)) == set(result) - {
        "action_sum",
        "action_squares",
    }


def test_continuous_actions_of_an_evaluation_are_those_that_the_environment_took():
    made = [Counter(action_space=spaces.Box(-0.5, 0.5, (2,), np.float32)) for _ in range(2)]
    environments = Environments(SyncVectorEnv([lambda one=one: one for one in made], copy=True))
    result = evaluate(environments, policy(environments), 6, 3, False, actions=True)
    lengths, sums, squares = (result[name] for name in ("episode_length", "action_sum", "action_squares"))
    # Of a reset the environment hears nothing, and what it takes beyond its share is of no episode.
    happened = [np.array(one.taken[: int(lengths.sum()) // 2]) for one in made]
    assert np.abs(np.concatenate(happened)).max() == 0.5
    np.testing.assert_allclose(sums.sum(axis=0), sum(one.sum(axis=0) for one in happened), rtol=1e-5)
    np.testing.assert_allclose(squares.sum(axis=0), sum((one**2).sum(axis=0) for one in happened), rtol=1e-5)


def test_short_episodes_are_not_favoured():
    environments = Environments(
        SyncVectorEnv([ShortOrLong] * 100, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    )
    lengths = evaluate(environments, policy(environments), 100, 0, True)["episode_length"]
    # The first 100 that end anywhere would have a mean below 2; five deviations of 100 episodes are 2.
    assert abs(lengths.mean() - 5) < 2


def test_an_evaluation_can_be_repeated():
    environments = make(Environment(id="CartPole-v1"), 4)
    actor = policy(environments)
    one, same, other = (evaluate(environments, actor, 8, seed, False)["episode_return"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()


def test_an_episode_without_end_is_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ratchet_rollout.evaluation.LONGEST_EPISODE", 50)
    environments = Environments(SyncVectorEnv([Endless], copy=False, autoreset_mode=AutoresetMode.DISABLED))
    result = evaluate(environments, policy(environments, preferred=0), 5, 0, True)
    assert result["episode_length"].tolist() == [50]


# --- what can't be built


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"id": "CartPole-v3"}, ["CartPole-v3", "did you mean", "CartPole-v1"]),
        ({"id": "cartpole-v1"}, ["CartPole-v1"]),
        ({"id": "Qwertyuiop-v0"}, ["no registered id", "entryPoint"]),
        ({"id": "no_such_package:Game-v0"}, ["no_such_package", "environment.image"]),
        ({"id": "LunarLander-v3"}, ["LunarLander-v3", "environment.image"]),
        ({"id": "CartPole-v1", "kwargs": {"gravity": 3}}, ["gravity"]),
        ({"id": "Blackjack-v1"}, ["Tuple", "FlattenObservation"]),
        ({"entry_point": "no_such_package:make"}, ["no_such_package", "environment.image"]),
        ({"entry_point": "rolloutprobes:make_countr"}, ["make_countr", "did you mean make_counter"]),
        ({"entry_point": "rolloutprobes:make_nothing"}, ["NoneType", "gymnasium.Env"]),
        ({"entry_point": "rolloutprobes:make_dict"}, ["observation", "Dict", "FlattenObservation"]),
        ({"entry_point": "rolloutprobes:make_text"}, ["action", "Text"]),
        ({"entry_point": "rolloutprobes:make_integer_actions"}, ["action", "Box of int64", "floating-point"]),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(environment: dict[str, object], words: list[str]):
    with pytest.raises(ConfigError) as caught:
        make(Environment.model_validate(environment), 2)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3), np.float32),
        spaces.Box(np.array([-1, -np.inf]), np.array([1, np.inf]), dtype=np.float64),
        spaces.Box(0, 255, (4, 4, 1), np.uint8),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [0, 0]]),
        spaces.MultiBinary(4),
        spaces.MultiBinary((2, 2)),
    ],
    ids=str,
)
def test_every_element_of_a_described_space_can_be_flattened(space: gymnasium.Space[np.ndarray]):
    from ratchet.policies import SpaceSpec, flatten_observation

    spec = describe(space, "observation")
    assert SpaceSpec.model_validate_json(spec.model_dump_json()) == spec
    space.seed(0)
    batch = np.stack([space.sample() for _ in range(5)])
    assert batch.dtype == spec.dtype
    flat = flatten_observation(spec, batch)
    wanted = np.stack([spaces.flatten(space, element) for element in batch])
    np.testing.assert_allclose(flat, wanted, rtol=1e-6)
    assert flat.shape == (5, spec.features)


def test_an_integer_box_is_no_action_space():
    with pytest.raises(UnsupportedSpace, match="action"):
        describe(spaces.Box(0, 5, (2,), np.int64), "action")
