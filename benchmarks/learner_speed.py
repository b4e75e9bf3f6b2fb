"""Learner steps per second: ours, the same update by autograd, and Stable-Baselines3's PPO.train.

Usage: python benchmarks/learner_speed.py [--repetitions N]

All three learn from the same number of CartPole-like steps with the same network (64x64, Tanh), minibatches
and epochs, in one process and on one thread, in turns. CPU seconds are those of the process, so another
program on the same cores disturbs them less than wall seconds.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402 - libraries read the number of threads when they are imported
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from datetime import datetime  # noqa: E402

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
import stable_baselines3  # noqa: E402
import torch  # noqa: E402
from ratchet_trainer.algorithms.batch import Batch  # noqa: E402
from ratchet_trainer.algorithms.ppo import PPO, advantages  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402
from torch import nn  # noqa: E402

from ratchet.api.v1alpha1.training import PPO as Hyperparameters  # noqa: E402, N811
from ratchet.api.v1alpha1.training import Algorithm  # noqa: E402
from ratchet.policies import EnvironmentSpec, SpaceSpec  # noqa: E402

TIME, COPIES, EPOCHS, MINIBATCH = 128, 8, 10, 256
UPDATES = 10
LEARNING_RATE, GAMMA, LAMBDA, CLIP, VALUE_COEFFICIENT, LONGEST_GRADIENT = 3e-4, 0.99, 0.95, 0.2, 0.5, 0.5


def batch() -> Batch:
    """Episodes of about 50 steps of a uniform policy."""
    rng = np.random.default_rng(0)
    grid, no = (TIME, COPIES), np.zeros((TIME, COPIES), bool)
    return Batch(
        observation=rng.standard_normal((*grid, 4)).astype(np.float32),
        action=rng.integers(0, 2, (*grid, 1)),
        log_probability=np.full(grid, np.log(0.5), np.float32),
        reward=np.ones(grid, np.float32),
        terminated=rng.random(grid) < 0.02,
        truncated=no,
        valid=~no,
        final_observation=np.empty((0, 4), np.float32),
        final_at=np.empty(0, np.int64),
        last_observation=rng.standard_normal((COPIES, 4)).astype(np.float32),
        sources=(("a", COPIES),),
    )


def ours(played: Batch) -> Callable[[], object]:
    hyperparameters = Hyperparameters(
        epochs=EPOCHS, minibatch_size=MINIBATCH, gamma=GAMMA, gae_lambda=LAMBDA, clip_range=CLIP
    )
    spec = EnvironmentSpec(
        observation=SpaceSpec(kind="Box", shape=(4,)), action=SpaceSpec(kind="Discrete", n=2, dtype="int64")
    )
    learner = PPO(Algorithm(ppo=hyperparameters), spec, "cpu")
    return lambda: learner.update(played, 0.0)


def autograd(played: Batch) -> Callable[[], object]:
    """The same update as most would write it, with the fused optimizer."""

    def network(outputs: int) -> nn.Sequential:
        layers = nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
        return nn.Sequential(*layers)

    policy, value = network(2), network(1)
    parameters = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, eps=1e-5, fused=True)

    def update() -> None:
        observation = torch.from_numpy(played.observation)
        with torch.no_grad():
            values = value(observation).squeeze(2).numpy()
            last = value(torch.from_numpy(played.last_observation)).squeeze(1).numpy()
        following = np.concatenate([values[1:], last[None]])
        ends = played.terminated, played.truncated, played.valid
        advantage, target = advantages(played.reward, values, following, *ends, GAMMA, LAMBDA)
        flat = observation.reshape(-1, 4), torch.from_numpy(played.action.ravel())
        rows = [torch.from_numpy(x.ravel()) for x in (played.log_probability, advantage, target)]
        for _ in range(EPOCHS):
            for index in torch.randperm(TIME * COPIES).split(MINIBATCH):
                x, action, old, gain, goal = (column[index] for column in (*flat, *rows))
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                log_probability = torch.log_softmax(policy(x), 1).gather(1, action[:, None]).squeeze(1)
                ratio = (log_probability - old).exp()
                surrogate = torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
                error = 0.5 * (value(x).squeeze(1) - goal).square().mean()
                optimizer.zero_grad()
                (VALUE_COEFFICIENT * error - surrogate).backward()
                nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
                optimizer.step()

    return update


def baselines(played: Batch) -> Callable[[], object]:
    """Only `PPO.train`: values and advantages, which the others compute anew each time, are given to it."""
    model = stable_baselines3.PPO(
        "MlpPolicy",
        DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * COPIES),
        learning_rate=LEARNING_RATE,
        n_steps=TIME,
        batch_size=MINIBATCH,
        n_epochs=EPOCHS,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=CLIP,
        # Its value loss lacks our factor of a half.
        vf_coef=VALUE_COEFFICIENT / 2,
        max_grad_norm=LONGEST_GRADIENT,
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    with torch.no_grad():
        values = model.policy.predict_values(torch.from_numpy(played.observation.reshape(-1, 4)))
        last = model.policy.predict_values(torch.from_numpy(played.last_observation))
    values, log_probability = values.view(TIME, COPIES), torch.from_numpy(played.log_probability)
    starts = np.concatenate([np.ones((1, COPIES), bool), played.terminated[:-1]])
    for t in range(TIME):
        columns = played.observation[t], played.action[t], played.reward[t], starts[t]
        model.rollout_buffer.add(*columns, values[t], log_probability[t])
    model.rollout_buffer.compute_returns_and_advantage(last, played.terminated[-1])
    return model.train


def measure(update: Callable[[], object]) -> tuple[float, float]:
    """Learner steps per CPU second and per wall second."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(UPDATES):
        update()
    steps = UPDATES * TIME * COPIES
    return steps / (time.process_time() - cpu), steps / (time.perf_counter() - wall)


def main() -> None:
    """Print medians, and their ratios to ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    played = batch()
    updates = {
        "Ratchet": ours(played),
        "autograd, fused Adam": autograd(played),
        "Stable-Baselines3": baselines(played),
    }
    figures: dict[str, list[tuple[float, float]]] = {label: [] for label in updates}
    for update in updates.values():
        measure(update)
    for _ in range(repetitions):
        for label, update in updates.items():
            figures[label].append(measure(update))

    print(
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M}, one thread, {TIME * COPIES} steps an update, "
        f"{EPOCHS} epochs, minibatches of {MINIBATCH}, medians of {repetitions} times {UPDATES} updates\n"
    )
    print(f"{'learner steps per':24}{'CPU second':>12}{'wall second':>13}{'Ratchet is faster, CPU':>25}")
    medians = {
        label: tuple(statistics.median(column) for column in zip(*pairs, strict=True))
        for label, pairs in figures.items()
    }
    for label, (cpu, wall) in medians.items():
        print(f"{label:24}{cpu:12.0f}{wall:13.0f}{medians['Ratchet'][0] / cpu:24.2f}x")


if __name__ == "__main__":
    main()
