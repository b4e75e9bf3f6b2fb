"""The policies made by hand for the rollout tests are what they are named."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from s3server import S3Server
from servedpolicies import plain

sys.path.insert(0, str(Path(__file__).parents[2] / "hack"))

from rollouts import cartpoles

from ratchet.api.v1alpha1.training import S3
from ratchet.policies.artifact import Artifact
from ratchet.policies.errors import ArtifactCorrupt
from ratchet.policies.sources import Server, read_source


def answers(made: Artifact, episodes: int = 20, steps: int = 50) -> tuple[float, float]:
    """Mean return, and the share of answers that were NaN, where another policy answers instead."""
    other = cartpoles.balancing().policy(seed=0)
    served, env = made.policy(seed=0), gymnasium.make("CartPole-v1", max_episode_steps=steps)
    returns: list[float] = []
    wrong = asked = 0
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            with np.errstate(over="ignore", invalid="ignore"):
                decisions = served.decide(**plain(observation[None], seeds=[None]))
            asked += 1
            if not np.isfinite(decisions.log_probability[0]):
                wrong += 1
                decisions = other.decide(**plain(observation[None], seeds=[None]))
            observation, reward, terminated, truncated, _ = env.step(int(decisions.action[0]))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns)), wrong / asked


@pytest.mark.parametrize(
    ("weights", "least", "most"),
    [(cartpoles.BALANCES, 50, 50), (cartpoles.GUESSES, 15, 30), (cartpoles.DROPS, 0, 10)],
)
def test_a_policy_balances_as_well_as_its_name_says(
    weights: tuple[float, ...], least: float, most: float
) -> None:
    mean, wrong = answers(cartpoles.balancing(weights))

    assert least <= mean <= most
    assert wrong == 0


def test_the_policy_that_answers_nan_passes_every_check_and_does_so_for_one_in_twenty() -> None:
    _, wrong = answers(cartpoles.not_a_number(), episodes=100)

    assert 0.03 < wrong < 0.09


def test_a_slow_policy_does_the_same_as_a_fast_one() -> None:
    assert answers(cartpoles.slow(width=64))[0] == 50


def test_a_stored_policy_is_a_checkpoint_and_a_spoilt_one_is_none(s3: S3Server, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    bucket, made = S3(bucket="ratchet", prefix="by-hand"), cartpoles.balancing()

    for _ in range(2):  # a second time, too
        stored = cartpoles.store(s3.client(), bucket, "good", made)
    spoilt = cartpoles.store(s3.client(), bucket, "spoilt", made, spoilt=True)

    server = Server(s3.endpoint)
    assert read_source(stored.uri, stored.digest.removeprefix("sha256:"), server).digest == made.digest
    assert stored.policy == made.digest
    with pytest.raises(ArtifactCorrupt, match="digest"):
        read_source(spoilt.uri, spoilt.digest.removeprefix("sha256:"), server)
