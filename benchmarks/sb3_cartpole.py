"""Stable-Baselines3 PPO on CartPole until an evaluation of 100 episodes reaches the target; prints JSON.

The same environment copies, hyperparameters, network, evaluation and stop rule as
examples/cartpole-ppo.yaml. Run by cartpole_wall_time.py, in a process of its own.
"""

import json
import sys
import time

START = time.monotonic()

import torch  # noqa: E402 - the wall time of a job includes its imports
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402


def main() -> None:
    job = json.load(sys.stdin)
    seed, threads = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    environment, ppo = job["environment"], job["algorithm"]["ppo"]
    activation = {"Tanh": torch.nn.Tanh, "ReLU": torch.nn.ReLU}[job["algorithm"]["network"]["activation"]]
    model = PPO(
        "MlpPolicy",
        make_vec_env(environment["id"], n_envs=environment["vectorSize"], seed=seed),
        learning_rate=ppo["learningRate"],
        n_steps=ppo["rolloutSteps"],
        batch_size=ppo["minibatchSize"],
        n_epochs=ppo["epochs"],
        gamma=ppo["gamma"],
        gae_lambda=ppo["gaeLambda"],
        clip_range=ppo["clipRange"],
        ent_coef=ppo["entropyCoefficient"],
        vf_coef=ppo["valueCoefficient"],
        max_grad_norm=ppo["maxGradNorm"],
        policy_kwargs={"net_arch": job["algorithm"]["network"]["hidden"], "activation_fn": activation},
        seed=seed,
        device="cpu",
    )
    evaluation_environment = make_vec_env(
        environment["id"], n_envs=environment["vectorSize"], seed=seed + 1000
    )
    every, target = job["evaluation"]["everySteps"], job["stop"]["targetReturn"]
    learning, mean_return = 0.0, float("-inf")
    while mean_return < target and model.num_timesteps < job["stop"]["maxSteps"]:
        begin = time.monotonic()
        model.learn(every, reset_num_timesteps=False)
        learning += time.monotonic() - begin
        result = evaluate_policy(model, evaluation_environment, n_eval_episodes=job["evaluation"]["episodes"])
        mean_return = float(result[0])  # type: ignore[arg-type]
    print(
        json.dumps(
            {
                "wall": time.monotonic() - START,
                "steps": model.num_timesteps,
                "steps_per_second": model.num_timesteps / learning,
                "mean_return": mean_return,
            }
        )
    )


if __name__ == "__main__":
    main()
