"""Plays the environments for one fragment at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratchet.policies import Actor
from ratchet_rollout.environments import Environments


class Player:
    """Episodes that go on from fragment to fragment, whatever policy acts.

    Args:
        environments: are reset here, and belong to this player from then on.
        steps: T, of each environment in one fragment.
        seed: of environments and actions.

    """

    def __init__(self, environments: Environments, steps: int, seed: np.random.SeedSequence) -> None:
        self._environments = environments
        self._steps = steps
        of_environments, of_actions = seed.spawn(2)
        self._rng = np.random.default_rng(of_actions)
        spec = environments.spec
        self._observation_dtype = np.dtype(spec.observation.dtype)
        self._action_dtype = np.dtype(spec.action.dtype)
        first = environments.reset(int(of_environments.generate_state(1)[0] >> 1))
        self._observation = np.array(first, self._observation_dtype)
        self._returns = np.zeros(environments.size)
        self._lengths = np.zeros(environments.size, np.int64)

    def play(self, actor: Actor, check: Callable[[], object] = lambda: None) -> dict[str, NDArray[Any]]:
        """The columns of one fragment, as docs/data-plane.md lists them.

        Args:
            actor: the policy that acts.
            check: called before each step; what it raises ends the fragment.

        """
        size, steps, environments = self._environments.size, self._steps, self._environments
        spec = environments.spec
        grid = (steps, size)
        observation = np.empty((*grid, *spec.observation.shape), self._observation_dtype)
        action = np.empty((*grid, *spec.action.shape), self._action_dtype)
        log_probability = np.empty(grid, np.float32)
        reward = np.empty(grid, np.float32)
        terminated, truncated, valid = (np.empty(grid, np.bool_) for _ in range(3))
        finals: list[NDArray[Any]] = [np.empty((0, *spec.observation.shape), self._observation_dtype)]
        episode_returns: list[float] = []
        episode_lengths: list[int] = []

        current = self._observation
        for t in range(steps):
            check()
            observation[t] = current
            acted, log_probability[t] = actor.act(observation[t], self._rng)
            action[t] = acted
            step = environments.step(actor.to_environment(acted))
            reward[t] = step.reward
            terminated[t] = step.terminated
            truncated[t] = step.truncated
            valid[t] = step.valid
            self._returns += step.reward
            self._lengths += step.valid
            ended = step.terminated | step.truncated
            if ended.any():
                episode_returns += self._returns[ended].tolist()
                episode_lengths += self._lengths[ended].tolist()
                self._returns[ended] = 0
                self._lengths[ended] = 0
                if len(step.final_observation):
                    finals.append(np.array(step.final_observation, self._observation_dtype))
            current = step.observation
        self._observation = np.array(current, self._observation_dtype)

        return {
            "observation": observation,
            "action": action,
            "log_probability": log_probability,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "valid": valid,
            "final_observation": np.concatenate(finals),
            "last_observation": self._observation,
            "episode_return": np.array(episode_returns, np.float32),
            "episode_length": np.array(episode_lengths, np.int32),
        }
