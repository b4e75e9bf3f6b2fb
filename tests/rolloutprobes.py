"""Environments whose trajectories are known beforehand, for tests of the rollout worker.

Every environment counts: an episode's observation is [episode, step], its reward 10 * episode + step.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

OBSERVATION = spaces.Box(-1, 1000, (2,), np.float32)
# Lengths of one environment's successive episodes, and how each ends. They repeat.
LENGTHS = (2, 3, 1)
ENDS = ("truncated", "terminated", "both")


class Counter(gymnasium.Env[np.ndarray, Any]):
    """One counting environment; it reuses its observation array, as some environments do."""

    observation_space = OBSERVATION
    action_space = spaces.Discrete(2)

    def __init__(self, shift: int = 0, action_space: gymnasium.Space[Any] | None = None):
        self.shift = shift
        self.episode = -1
        self.taken: list[Any] = []
        self.array = np.zeros(2, np.float32)
        if action_space is not None:
            self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.count = 0
        self.array[:] = self.episode, 0
        return self.array, {}

    def step(self, action: Any):
        self.taken.append(action)
        self.count += 1
        self.array[:] = self.episode, self.count
        end = ends(self.episode + self.shift, self.count)
        return (
            self.array,
            float(10 * self.episode + self.count),
            end != "" and end != "truncated",
            end
            in (
                "truncated",
                "both",
            ),
            {},
        )


def ends(episode: int, count: int) -> str:
    return ENDS[episode % 3] if count >= LENGTHS[episode % 3] else ""


class VectorCounter(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Counting environments that step together; environment i is shifted by i."""

    def __init__(self, num_envs: int, mode: AutoresetMode, batched_final: bool = False):
        self.num_envs, self.mode, self.batched_final = num_envs, mode, batched_final
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = OBSERVATION, Counter.action_space
        self.observation_space = batch_space(OBSERVATION, num_envs)
        self.action_space = batch_space(Counter.action_space, num_envs)
        self.array = np.zeros((num_envs, 2), np.float32)
        self.ended = np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None):
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self.array[:] = 0
            self.ended[:] = False
        else:
            self._restart(mask)
            self.ended[mask] = False
        return self.array, {}

    def step(self, actions: np.ndarray):
        resets = self.ended & (self.mode is AutoresetMode.NEXT_STEP)
        if self.mode is AutoresetMode.DISABLED:
            assert not self.ended.any(), "an ended episode is stepped"
        self.array[~resets, 1] += 1
        self._restart(resets)
        reward = 10 * self.array[:, 0] + self.array[:, 1]
        endings = [
            "" if reset else ends(int(episode) + i, int(count))
            for i, ((episode, count), reset) in enumerate(zip(self.array, resets, strict=True))
        ]
        terminated = np.array([end in ("terminated", "both") for end in endings])
        truncated = np.array([end in ("truncated", "both") for end in endings])
        self.ended = terminated | truncated
        infos: dict[str, Any] = {}
        if self.mode is AutoresetMode.SAME_STEP and self.ended.any():
            final = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(self.ended):
                final[i] = self.array[i].copy()
            infos = {
                "final_obs": self.array.copy() if self.batched_final else final,
                "_final_obs": self.ended,
            }
            self._restart(self.ended)
        # A reset of NEXT_STEP reports a reward that nobody earned, to see that it is not counted.
        reward[resets] = 99
        return self.array, reward, terminated, truncated, infos

    def _restart(self, mask: np.ndarray) -> None:
        self.array[mask, 0] += 1
        self.array[mask, 1] = 0


def expected(copies: int, steps: int, resets_take_a_step: bool) -> dict[str, list[Any]]:
    """What happens in `steps` steps of counters shifted by 0, 1, …: columns of nested (T, N) lists."""
    columns: dict[str, list[Any]] = {
        name: [[None] * copies for _ in range(steps)]
        for name in ("observation", "reward", "terminated", "truncated", "valid", "final")
    }
    columns["episodes"] = []
    columns["last"] = []
    for i in range(copies):
        episode, count, over = 0, 0, False
        for t in range(steps):
            row = {"observation": [episode, count], "reward": 0, "terminated": False, "truncated": False}
            row |= {"valid": not over, "final": None}
            if over:
                episode, count, over = episode + 1, 0, False
            else:
                count += 1
                end = ends(episode + i, count)
                row["reward"] = 10 * episode + count
                row["terminated"], row["truncated"] = (
                    end in ("terminated", "both"),
                    end in ("truncated", "both"),
                )
                if row["truncated"]:
                    row["final"] = [episode, count]
                if end:
                    columns["episodes"].append(
                        (t, i, sum(10 * episode + k for k in range(1, count + 1)), count)
                    )
                    if resets_take_a_step:
                        over = True
                    else:
                        episode, count = episode + 1, 0
            for name, value in row.items():
                columns[name][t][i] = value
        columns["last"].append([episode, count])
    columns["episodes"].sort()
    return columns


def make_counter(**kwargs: Any) -> gymnasium.Env[np.ndarray, Any]:
    return Counter(**kwargs)


def make_dict(**_: Any) -> gymnasium.Env[Any, Any]:
    env = Counter()
    env.observation_space = spaces.Dict({"a": OBSERVATION})  # type: ignore[assignment]
    return env


def make_text(**_: Any) -> gymnasium.Env[Any, Any]:
    return Counter(action_space=spaces.Text(3))


def make_integer_actions(**_: Any) -> gymnasium.Env[Any, Any]:
    return Counter(action_space=spaces.Box(0, 5, (2,), np.int64))


def make_nothing(**_: Any) -> None:
    return None


class Endless(gymnasium.Env[np.ndarray, Any]):
    """An episode ends only when action 1 is taken; it never is by a policy that prefers 0."""

    observation_space = OBSERVATION
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any):
        return np.zeros(2, np.float32), 1.0, bool(action), False, {}


class ShortOrLong(gymnasium.Env[np.ndarray, Any]):
    """Half of the episodes last 1 step, half 9; the return is the length."""

    observation_space = OBSERVATION
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.left = int(self.np_random.choice([1, 9]))
        return np.zeros(2, np.float32), {}

    def step(self, action: Any):
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left == 0, False, {}
