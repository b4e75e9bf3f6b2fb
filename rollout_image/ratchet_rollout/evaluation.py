"""Plays whole episodes to judge a policy; nothing is learned from them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratchet.policies import Actor
from ratchet_rollout.environments import Environments

# Half an hour of an Atari game: 108,000 frames, a step each fourth. An episode without an end of its own
# would hold up the worker for ever.
LONGEST_EPISODE = 27_000


def evaluate(
    environments: Environments,
    actor: Actor,
    episodes: int,
    seed: int,
    deterministic: bool,
    check: Callable[[], object] = lambda: None,
) -> dict[str, NDArray[Any]]:
    """Returns and lengths of `episodes` episodes, in no particular order.

    Each environment plays a number of episodes that is fixed beforehand: to take the first that end anywhere
    would favour short ones. An episode is cut at `LONGEST_EPISODE` steps; then there are fewer, for that
    environment can't begin another.

    Args:
        environments: all are reset first, and left in the midst of episodes.
        actor: the policy that acts.
        episodes: how many.
        seed: the same one gives the same episodes.
        deterministic: take the most likely actions.
        check: called before each step; what it raises ends the evaluation.

    """
    rng = np.random.default_rng(seed)
    dtype = np.dtype(environments.spec.observation.dtype)
    observation = np.asarray(environments.reset(seed), dtype)
    size = environments.size
    left = np.full(size, episodes // size) + (np.arange(size) < episodes % size)
    returns, lengths = np.zeros(size), np.zeros(size, np.int64)
    episode_returns: list[float] = []
    episode_lengths: list[int] = []
    while left.any():
        check()
        acted = actor.act(observation, rng, deterministic).action
        step = environments.step(actor.to_environment(acted))
        returns += step.reward
        lengths += step.valid
        too_long = lengths >= LONGEST_EPISODE
        ended = step.terminated | step.truncated | too_long
        if ended.any():
            counted = ended & (left > 0)
            episode_returns += returns[counted].tolist()
            episode_lengths += lengths[counted].tolist()
            left -= counted
            left[too_long & ~(step.terminated | step.truncated)] = 0
            returns[ended] = 0
            lengths[ended] = 0
        observation = np.asarray(step.observation, dtype)
    return {
        "episode_return": np.array(episode_returns, np.float32),
        "episode_length": np.array(episode_lengths, np.int32),
    }
