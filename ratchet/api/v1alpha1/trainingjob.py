"""RLTrainingJob: a policy's training from environment to checkpoints."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel, Rule, Transition
from ratchet.api.v1alpha1.common import Condition, PodFields, Resources, SecretReference
from ratchet.api.v1alpha1.training import (
    Algorithm,
    Checkpoint,
    Environment,
    Evaluation,
    Stop,
    TrainingConfig,
)


class Gpu(ApiModel):
    """GPUs for the trainer."""

    count: int = Field(default=1, ge=0, le=16)
    resource_name: str = Field(
        default="nvidia.com/gpu", max_length=253, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"
    )
    fallback: Literal["CPU", "None"] = Field(
        default="CPU", description="When no node has such GPUs: train on CPU and say so, or wait."
    )


class Trainer(PodFields):
    """The learner's pod."""

    gpu: Gpu | None = None


class Rollouts(PodFields):
    """The workers that play the environment."""

    replicas: int = Field(default=1, ge=1, le=10_000)
    min_replicas: int | None = Field(default=None, ge=1, description="Default: replicas.")
    max_replicas: int | None = Field(default=None, ge=1, le=10_000, description="Default: replicas.")
    mode: Literal["Sync", "BoundedAsync"] = Field(
        default="Sync", description="Sync waits for the newest policy; BoundedAsync lets workers run ahead."
    )
    max_policy_lag: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="BoundedAsync only: the oldest policy version accepted. Default 1.",
    )

    rules: ClassVar = (
        *PodFields.rules,
        Rule(
            "(has(self.minReplicas) ? self.minReplicas : self.replicas) <= self.replicas",
            "rollouts.minReplicas is above rollouts.replicas: write minReplicas <= replicas <= maxReplicas",
            lambda self: (self.min_replicas or self.replicas) <= self.replicas,
        ),
        Rule(
            "self.replicas <= (has(self.maxReplicas) ? self.maxReplicas : self.replicas)",
            "rollouts.maxReplicas is below rollouts.replicas: write minReplicas <= replicas <= maxReplicas",
            lambda self: self.replicas <= (self.max_replicas or self.replicas),
        ),
        Rule(
            "self.mode == 'BoundedAsync' || !has(self.maxPolicyLag)",
            "rollouts.maxPolicyLag needs rollouts.mode: BoundedAsync; in mode Sync there is no lag",
            lambda self: self.mode == "BoundedAsync" or self.max_policy_lag is None,
        ),
    )


class ManagedRedis(ApiModel):
    """A Redis server of the job's own."""

    max_memory: str = Field(default="256Mi", max_length=16, pattern=r"^[1-9][0-9]*(Mi|Gi)$")
    resources: Resources | None = None


class ExternalRedis(ApiModel):
    """A Redis server that is there already."""

    secret_ref: SecretReference = Field(
        description="A Secret with REDIS_URL, such as rediss://user:password@host:6379/0."
    )


class Experience(ApiModel):
    """The Redis that carries experience and weights."""

    type: Literal["Managed", "External"] = "Managed"
    managed: ManagedRedis | None = None
    external: ExternalRedis | None = None

    rules: ClassVar = (
        Rule(
            "self.type == 'External' ? (has(self.external) && !has(self.managed)) : !has(self.external)",
            "experience.type does not fit its member: write type: Managed with managed: {…}, or "
            "type: External with external: {secretRef: {name: …}}",
            lambda self: (
                (self.external is not None and self.managed is None)
                if self.type == "External"
                else self.external is None
            ),
        ),
    )


class OnExitCodes(ApiModel):
    """Matches the exit code of the trainer's container."""

    operator: Literal["In", "NotIn"] = "In"
    values: Annotated[list[Annotated[int, Field(ge=1, le=255)]], Field(min_length=1, max_length=64)]


class FailureRule(ApiModel):
    """The first rule that matches a failure decides what it means."""

    action: Literal["FailJob", "Ignore", "Count"]
    on_exit_codes: OnExitCodes | None = None
    on_reasons: (
        Annotated[
            list[Literal["OOMKilled", "Evicted", "Preempted", "NodeLost", "Error"]], Field(max_length=8)
        ]
        | None
    ) = None

    rules: ClassVar = (
        Rule(
            "has(self.onExitCodes) != has(self.onReasons)",
            "a failure rule matches in exactly one way: write onExitCodes: {values: […]} or onReasons: […]",
            lambda self: (self.on_exit_codes is None) != (self.on_reasons is None),
        ),
    )


class FailurePolicy(ApiModel):
    """How many failures a job survives, and which of them count."""

    backoff_limit: int = Field(default=3, ge=0, le=1000)
    rules_: Annotated[list[FailureRule], Field(max_length=32)] = Field(default=[], alias="rules")


class RLTrainingJobSpec(ApiModel):
    """What the user wants."""

    environment: Environment
    algorithm: Algorithm = Algorithm()
    trainer: Trainer = Trainer()
    rollouts: Rollouts = Rollouts()
    experience: Experience = Experience()
    checkpoint: Checkpoint
    evaluation: Evaluation = Evaluation()
    stop: Stop
    failure_policy: FailurePolicy = FailurePolicy()
    suspend: bool = False
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)

    rules: ClassVar = (
        Rule(
            "has(self.stop.maxSteps) || (self.algorithm.ppo.learningRateSchedule == 'Constant' && "
            "self.algorithm.ppo.clipRangeSchedule == 'Constant')",
            "a Linear schedule falls to zero at stop.maxSteps: write stop.maxSteps, or make the schedule "
            "Constant",
            lambda self: (
                self.stop.max_steps is not None
                or (
                    self.algorithm.ppo.learning_rate_schedule == "Constant"
                    and self.algorithm.ppo.clip_range_schedule == "Constant"
                )
            ),
        ),
        Rule(
            "self.algorithm.ppo.minibatchSize <= self.algorithm.ppo.rolloutSteps * "
            "self.environment.vectorSize * self.rollouts.replicas",
            "algorithm.ppo.minibatchSize is larger than a whole batch, which is ppo.rolloutSteps x "
            "environment.vectorSize x rollouts.replicas: make it smaller or the batch larger",
            lambda self: (
                self.algorithm.ppo.minibatch_size
                <= self.algorithm.ppo.rollout_steps * self.environment.vector_size * self.rollouts.replicas
            ),
        ),
    )
    transitions: ClassVar = (
        *(
            Transition(
                f"self.{field} == oldSelf.{field}",
                f"{field} can't be changed once the job exists, for its checkpoints would no longer fit: "
                "create a job with another name",
            )
            for field in ("environment", "algorithm", "experience")
        ),
        Transition(
            "self.checkpoint.s3.bucket == oldSelf.checkpoint.s3.bucket && "
            "self.checkpoint.s3.prefix == oldSelf.checkpoint.s3.prefix",
            "checkpoint.s3.bucket and prefix can't be changed once the job exists, for its "
            "checkpoints are there: create a job with another name",
        ),
    )

    def config(self, namespace: str, name: str, uid: str) -> TrainingConfig:
        """Return the resolved configuration that trainer and workers read."""
        lag = (self.rollouts.max_policy_lag or 1) if self.rollouts.mode == "BoundedAsync" else 0
        return TrainingConfig(
            namespace=namespace,
            name=name,
            uid=uid,
            environment=self.environment,
            algorithm=self.algorithm,
            evaluation=self.evaluation,
            stop=self.stop,
            checkpoint=self.checkpoint,
            fragments_per_batch=self.rollouts.replicas,
            max_policy_lag=lag,
        )


CURVE_POINTS = 20


class CurvePoint(ApiModel):
    """One point of the return curve."""

    steps: int
    mean_return: float


class Progress(ApiModel):
    """Where training stands; rates are over the last seconds, counts since the job began."""

    steps: int = Field(default=0, description="Environment steps accepted by the learner, each counted once.")
    updates: int = 0
    episodes: int = 0
    mean_return: float | None = Field(default=None, description="Over the last 100 training episodes.")
    mean_length: float | None = None
    steps_per_second: float | None = None
    policy_version: int = 0
    policy_lag: float | None = Field(
        default=None, description="Mean versions behind of the fragments in the last batch."
    )
    fragments_accepted: int = 0
    fragments_duplicate: int = 0
    fragments_dropped: int = 0
    learner_busy: float | None = Field(default=None, description="Fraction of time spent in updates.")
    curve: Annotated[list[CurvePoint], Field(max_length=CURVE_POINTS)] = Field(
        default=[], description="Return of training from the first update to now, thinned evenly."
    )


class EvaluationResult(ApiModel):
    """One evaluation of one policy version."""

    steps: int
    policy_version: int
    episodes: int
    mean_return: float
    std_return: float
    mean_length: float
    time: str


class CheckpointInfo(ApiModel):
    """One checkpoint in S3; its digest is the SHA-256 of its manifest."""

    name: str
    uri: str
    digest: str
    steps: int
    policy_version: int
    mean_return: float | None = None
    time: str


class Checkpoints(ApiModel):
    latest: CheckpointInfo | None = None
    best: CheckpointInfo | None = None


class Evaluations(ApiModel):
    latest: EvaluationResult | None = None
    best: EvaluationResult | None = None


class Failure(ApiModel):
    """One failure of the trainer, as the failure policy saw it."""

    id: str = Field(description="pod UID and restart count: a failure is judged once.")
    reason: str
    exit_code: int | None = None
    message: str = ""
    action: Literal["FailJob", "Ignore", "Count"]
    time: str


class Workers(ApiModel):
    wanted: int = 0
    ready: int = 0


class RLTrainingJobStatus(ApiModel):
    """What is."""

    observed_generation: int | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default=[])
    start_time: str | None = None
    completion_time: str | None = None
    attempt: int = Field(default=0, description="Starts at 1; each counted failure begins the next.")
    failures: Annotated[list[Failure], Field(max_length=16)] = Field(default=[])
    failures_counted: int = 0
    device: Literal["CPU", "GPU"] | None = None
    progress: Progress | None = None
    evaluation: Evaluations | None = None
    checkpoints: Checkpoints | None = None
    workers: Workers | None = None
    redis_secret_uid: str | None = None
    active_seconds: int | None = Field(
        default=None, description="Time since the job first started, without suspended time."
    )
