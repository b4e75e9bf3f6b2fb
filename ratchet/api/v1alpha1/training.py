"""What is trained and how: environment, algorithm, evaluation, stop rules, checkpoints.

Everything here reaches the trainer and the workers inside their configuration file.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel, Duration, FreeForm, Rule
from ratchet.api.v1alpha1.common import SecretReference


class Environment(ApiModel):
    """A Gymnasium environment by id, or a factory in an image of the user's own."""

    id: str | None = Field(
        default=None, min_length=1, max_length=253, description="A Gymnasium id, such as CartPole-v1."
    )
    entry_point: str | None = Field(
        default=None,
        max_length=253,
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$",
        description="package.module:function that returns a gymnasium.Env.",
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="An image for the workers, built FROM Ratchet's rollout image, with the environment.",
    )
    kwargs: FreeForm = Field(default={}, description="Arguments for the environment's constructor.")
    vector_size: int = Field(
        default=8, ge=1, le=4096, description="Copies of the environment stepped together in each worker."
    )
    max_episode_steps: int | None = Field(default=None, ge=1, description="Truncate episodes at this length.")

    rules: ClassVar = (
        Rule(
            "has(self.id) != has(self.entryPoint)",
            "an environment is named in exactly one way: write id: CartPole-v1 for a registered "
            "environment, or entryPoint: my_package.my_module:make_env for your own",
            lambda self: (self.id is None) != (self.entry_point is None),
        ),
    )


class PPO(ApiModel):
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347)."""

    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    learning_rate_schedule: Literal["Constant", "Linear"] = Field(
        default="Constant", description="Linear falls to zero at stop.maxSteps."
    )
    rollout_steps: int = Field(
        default=128, ge=1, le=65536, description="Steps of each environment copy in one fragment."
    )
    epochs: int = Field(default=4, ge=1, le=100)
    minibatch_size: int = Field(default=256, ge=2, le=1048576)
    gamma: float = Field(default=0.99, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    clip_range_schedule: Literal["Constant", "Linear"] = "Constant"
    value_clip_range: float | None = Field(default=None, gt=0)
    entropy_coefficient: float = Field(default=0.0, ge=0, le=1)
    value_coefficient: float = Field(default=0.5, ge=0, le=10)
    max_grad_norm: float = Field(default=0.5, gt=0)
    target_kl: float | None = Field(
        default=None,
        gt=0,
        alias="targetKL",
        description="Stop the epochs of an update when KL passes 1.5 times this.",
    )
    normalize_advantages: bool = True
    normalize_observations: bool = False
    normalize_rewards: bool = False


class Network(ApiModel):
    """A multilayer perceptron for the policy and one for the value."""

    hidden: Annotated[list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=1, max_length=16)] = Field(
        default=[64, 64]
    )
    activation: Literal["Tanh", "ReLU"] = "Tanh"


class Algorithm(ApiModel):
    """A typed union: `type` names the member that holds the hyperparameters."""

    type: Literal["PPO"] = "PPO"
    ppo: PPO = PPO()
    network: Network = Network()
    seed: int = Field(default=0, ge=0, le=2147483647)


class Evaluation(ApiModel):
    """Episodes played apart from training, with the newest policy."""

    every_steps: int = Field(default=50_000, ge=1, description="Environment steps between evaluations.")
    episodes: int = Field(default=20, ge=1, le=10_000)
    deterministic: bool = Field(default=True, description="Take the most likely action instead of sampling.")


class Stop(ApiModel):
    """When training ends; the first rule that holds ends it."""

    max_steps: int | None = Field(
        default=None, ge=1, description="Environment steps accepted by the learner."
    )
    target_return: float | None = Field(default=None, description="Mean return of one evaluation.")
    max_duration: Duration | None = Field(
        default=None,
        description="Time since the job first started, such as 45m or 2h30m. Suspended time does not count; "
        "all else does: waiting for workers, images, Secrets or GPUs, and the time between two attempts.",
    )

    rules: ClassVar = (
        Rule(
            "has(self.maxSteps) || has(self.targetReturn) || has(self.maxDuration)",
            "training would never end: write at least one of stop.maxSteps, stop.targetReturn or "
            "stop.maxDuration",
            lambda self: (
                not (self.max_steps is None and self.target_return is None and self.max_duration is None)
            ),
        ),
    )


class S3(ApiModel):
    """A bucket of AWS S3, MinIO or any server that speaks S3."""

    bucket: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    prefix: str = Field(default="", max_length=512, pattern=r"^([A-Za-z0-9!_.*'()-]+/?)*$")
    endpoint: str | None = Field(
        default=None, max_length=512, pattern=r"^https?://[^/]+/?$", description="Default: AWS."
    )
    region: str = Field(default="us-east-1", min_length=1, max_length=64)
    secret_ref: SecretReference | None = Field(
        default=None,
        description="A Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: the pod's identity.",
    )


class Checkpoint(ApiModel):
    """Where and how often everything that is needed to go on is stored."""

    s3: S3
    interval: Duration = Field(
        default="60s", description="Time between checkpoints, such as 90s, 15m or 2h30m."
    )
    keep_last: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Newest ones. What PolicyDeployments of the namespace may start servers from stays too.",
    )
    keep_best: int = Field(
        default=1, ge=1, le=1000, description="Best by evaluation; never removed by keepLast."
    )
    keep_for: Duration = Field(
        default="10m",
        description="How long one stays that was among the last or the best and no longer is: whoever chose "
        "it then needs the time to say so.",
    )


def key_prefix(namespace: str, uid: str) -> str:
    """Prefix of every Redis key of a job; a Redis user can be confined to a namespace or to one job."""
    return f"ratchet:{namespace}:{uid}:"


class TrainingConfig(ApiModel):
    """What trainer and workers read from /etc/ratchet/job.json: the resolved job, nothing secret."""

    namespace: str
    name: str
    uid: str
    environment: Environment
    algorithm: Algorithm
    evaluation: Evaluation
    stop: Stop
    checkpoint: Checkpoint
    fragments_per_batch: int = Field(ge=1, description="Fragments the learner consumes in one update.")
    max_policy_lag: int = Field(default=0, ge=0, description="0 is synchronous, on-policy training.")

    @property
    def key_prefix(self) -> str:
        """Prefix of every Redis key of this job."""
        return key_prefix(self.namespace, self.uid)

    @property
    def storage_prefix(self) -> str:
        """Prefix of every S3 key of this job; the uid keeps jobs of the same name apart."""
        parts = (self.checkpoint.s3.prefix.strip("/"), self.namespace, self.name, self.uid)
        return "/".join(part for part in parts if part)
