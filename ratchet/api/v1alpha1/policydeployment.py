"""PolicyDeployment: a policy that serves, and the way a newer one takes to replace it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel, Duration, Name, Rule, seconds
from ratchet.api.v1alpha1.common import Condition, LocalReference, PodFields, SecretReference
from ratchet.api.v1alpha1.training import S3

Digest = Annotated[
    str,
    Field(
        min_length=71,
        max_length=71,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="SHA-256 of the checkpoint's manifest, such as sha256:9f86….",
    ),
]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[int, Field(ge=1, le=99)]


class TrainingJobSource(ApiModel):
    """Checkpoints of a job in this namespace."""

    job_ref: LocalReference
    checkpoint: Literal["Best", "Latest", "Step"] = "Best"
    step: int | None = Field(
        default=None, ge=0, description="checkpoint: Step only: steps of the checkpoint."
    )
    follow: Literal["Automatic", "OnApproval", "Never"] = Field(
        default="Automatic",
        description="What a newer checkpoint does: begin a trial, wait for promote, nothing.",
    )

    rules: ClassVar = (
        Rule(
            "(self.checkpoint == 'Step') == has(self.step)",
            "source.trainingJob.step goes with checkpoint: Step: write both or neither",
            lambda self: (self.checkpoint == "Step") == (self.step is not None),
        ),
    )


class CheckpointSource(ApiModel):
    """One checkpoint, wherever it came from."""

    s3: S3 = Field(description="prefix: of the policy, or of the checkpoint's manifest, after the bucket.")
    digest: Digest

    rules: ClassVar = (
        Rule(
            "self.s3.prefix != ''",
            "source.checkpoint names a bucket and nothing in it: write as s3.prefix what stands after "
            "s3://<bucket>/ in `ratchet checkpoints`",
            lambda self: self.s3.prefix != "",
        ),
    )


class Source(ApiModel):
    """Where the policy comes from: `type` names the member."""

    type: Literal["TrainingJob", "Checkpoint"]
    training_job: TrainingJobSource | None = None
    checkpoint: CheckpointSource | None = None

    rules: ClassVar = (
        Rule(
            "self.type == 'TrainingJob' ? (has(self.trainingJob) && !has(self.checkpoint)) : "
            "(has(self.checkpoint) && !has(self.trainingJob))",
            "source.type does not fit its member: write type: TrainingJob with trainingJob: {…}, or "
            "type: Checkpoint with checkpoint: {…}",
            lambda self: (
                (self.training_job is not None, self.checkpoint is not None)
                == (self.type == "TrainingJob", self.type == "Checkpoint")
            ),
        ),
    )


class CanaryStep(ApiModel):
    """A share of the new episodes, and what it takes to go on."""

    weight: Percent = Field(description="Percent of new episodes.")
    min_duration: Duration = "30s"
    approval: bool = Field(default=False, description="Wait for `ratchet rollout resume` as well.")


class Canary(ApiModel):
    """Weights that grow on evidence."""

    steps: Annotated[list[CanaryStep], Field(min_length=1, max_length=16)] = Field(
        default=[CanaryStep(weight=5), CanaryStep(weight=25), CanaryStep(weight=50)]
    )

    rules: ClassVar = (
        Rule(
            "self.steps.map(step, step.weight).isSorted()",
            "strategy.canary.steps must not sink: an episode never changes arm, so write the weights in "
            "growing order",
            lambda self: all(
                one.weight <= other.weight for one, other in zip(self.steps, self.steps[1:], strict=False)
            ),
        ),
    )


class BlueGreen(ApiModel):
    """The whole new capacity beside the old one, then all traffic at once."""

    approval: bool = Field(default=False, description="Wait for `ratchet rollout promote` once it is ready.")


class Shadow(ApiModel):
    """Copies of requests, whose answers nobody gets."""

    weight: Annotated[int, Field(ge=1, le=100)] = Field(
        default=100, description="Percent of the requests copied."
    )
    min_duration: Duration = "5m"
    then: Literal["Promote", "Wait"] = Field(default="Wait", description="Once every guard passes.")


class ABTest(ApiModel):
    """A fixed split that reports the difference; nothing is promoted without being asked for."""

    weight: Percent = 50
    min_duration: Duration = "1h"


class Strategy(ApiModel):
    """How a newer policy takes over: `type` names the member, each of which has defaults."""

    type: Literal["Canary", "BlueGreen", "Shadow", "AB", "AllAtOnce"] = "Canary"
    canary: Canary = Canary()
    blue_green: BlueGreen = BlueGreen()
    shadow: Shadow = Shadow()
    ab: ABTest = Field(default=ABTest(), alias="ab")
    bake: Duration = Field(
        default="5m",
        description="How long the old policy keeps its capacity after the new one serves everybody.",
    )
    progress_deadline: Duration = Field(default="10m", description="For each phase to get what it waits for.")
    cooldown: Duration = Field(default="1m", description="After a rollback, before the next trial.")
    attempts: int = Field(
        default=3, ge=1, le=100, description="Trials of one digest that does not get ready."
    )


class Guard(ApiModel):
    """What every guard has."""

    enabled: bool = True
    share: float = Field(
        default=1.0, gt=0, le=100, description="Of falseRollbackRate, relative to the other guards."
    )
    minimum: int = Field(default=500, ge=1, description="Samples of the canary before it may pass unproven.")
    on_fail: Literal["RollBack", "Hold", "Advance"] = "RollBack"
    on_not_enough_evidence: Literal["Hold", "RollBack", "Advance"] = Field(
        default="Hold",
        description="When a stage has lasted longer than progressDeadline; never without traffic.",
    )
    on_source_down: Literal["Hold", "RollBack", "Advance"] = "Hold"


class RateGuard(Guard):
    """A rate of bad answers, against the stable arm and, where limit is written, against that too."""

    max_ratio: float = Field(default=1.5, gt=0, le=1000, description="Times the stable arm's rate.")
    tolerated: Share = Field(default=0.001, description="A rate that never fails against the stable arm.")
    limit: Share | None = Field(default=None, description="A rate that fails whatever stable does.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.limit) || self.tolerated <= self.limit",
            "a guard contradicts itself: tolerated is above limit; write tolerated <= limit",
            lambda self: self.limit is None or self.tolerated <= self.limit,
        ),
    )


class LatencyGuard(Guard):
    """A quantile of latency, against the stable arm and, where limit is written, against that too."""

    quantile: float = Field(default=0.99, ge=0.5, le=0.9999)
    max_ratio: float = Field(default=1.5, ge=1, le=1000, description="Times the stable arm's quantile.")
    limit_milliseconds: float | None = Field(default=None, gt=0, description="Rounded up to a bucket's edge.")


class ReturnRange(ApiModel):
    """Between what all returns certainly lie; makes the test exact with few episodes."""

    low: float
    high: float

    rules: ClassVar = (
        Rule(
            "self.low < self.high",
            "guards.episodeReturn.range is empty: write low < high",
            lambda self: self.low < self.high,
        ),
    )


class ReturnGuard(Guard):
    """Mean return of episodes of equal age; needs rewards to be reported."""

    enabled: bool = False
    minimum: int = Field(default=50, ge=1, description="Episodes of the canary before it may pass unproven.")
    max_relative_drop: Share | None = Field(
        default=None, description="Share of |stable's mean|. Default 0.05."
    )
    max_drop: float | None = Field(default=None, ge=0, description="In units of the return.")
    baseline: float | None = Field(default=None, description="Compare with this mean too.")
    range: ReturnRange | None = None
    horizon: Duration = Field(default="5m", description="Time that an episode gets to end and report.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.maxDrop) && has(self.maxRelativeDrop))",
            "guards.episodeReturn has two bounds: write maxDrop or maxRelativeDrop",
            lambda self: self.max_drop is None or self.max_relative_drop is None,
        ),
        Rule(
            "duration(self.horizon) <= duration('15m')",
            "guards.episodeReturn.horizon is too long, for a server keeps the returns of 20 minutes: write "
            "15m or less",
            lambda self: seconds(self.horizon) <= 900,
        ),
    )


class DriftGuard(Guard):
    """Total variation of the actions from those of the stable arm and, where it is written, of training."""

    enabled: bool = False
    max_distance: float = Field(default=0.2, gt=0, le=1, description="From the stable arm's actions.")
    max_distance_from_training: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="From what the policy did in the evaluation of its checkpoint. Nothing is compared where "
        "there was none, or one of fewer than 20 episodes, and where clients ask for most likely actions "
        "and the evaluation did not, or the other way round.",
    )


class TripWire(ApiModel):
    """Something that must not be at all; no statistics, no share of falseRollbackRate."""

    enabled: bool = True
    limit: int = Field(default=0, ge=0, description="How many are let pass.")


class PrometheusGuard(ApiModel):
    """One more source; its outage neither promotes nor rolls back."""

    name: Name
    url: str = Field(max_length=1024, pattern=r"^https?://")
    query: str = Field(min_length=1, max_length=4096, description="Its value must be one number.")
    max: float | None = None
    min: float | None = None

    rules: ClassVar = (
        Rule(
            "has(self.max) || has(self.min)",
            "a Prometheus guard compares with nothing: write max or min",
            lambda self: self.max is not None or self.min is not None,
        ),
        Rule(
            "!(has(self.max) && has(self.min)) || self.min <= self.max",
            "a Prometheus guard contradicts itself: min is above max; write min <= max",
            lambda self: self.max is None or self.min is None or self.min <= self.max,
        ),
    )


class Guards(ApiModel):
    """What a trial is judged by."""

    error_rate: RateGuard = RateGuard()
    fallback_rate: RateGuard = RateGuard(tolerated=0.01)
    latency: LatencyGuard = LatencyGuard()
    episode_return: ReturnGuard = ReturnGuard()
    action_drift: DriftGuard = DriftGuard()
    mask_violations: TripWire = TripWire()
    nan: TripWire = TripWire()
    restarts: TripWire = TripWire()
    prometheus: Annotated[list[PrometheusGuard], Field(max_length=8)] = Field(default=[])
    false_rollback_rate: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Chance that a policy which keeps every bound is rolled back, over the whole rollout.",
    )
    false_promotion_rate: float = Field(
        default=0.05, gt=0, lt=1, description="Chance that a guard proves a bound kept which is not."
    )

    rules: ClassVar = (
        Rule(
            "self.prometheus.all(one, self.prometheus.exists_one(other, other.name == one.name))",
            "two of guards.prometheus have one name, by which their verdicts are told: write another",
            lambda self: len({one.name for one in self.prometheus}) == len(self.prometheus),
        ),
    )


class Autoscaling(ApiModel):
    """A HorizontalPodAutoscaler for each arm."""

    max_replicas: int = Field(ge=1, le=1000)
    cpu_percent: int | None = Field(default=70, ge=1, le=100, alias="cpuPercent")
    memory_percent: int | None = Field(default=None, ge=1, le=100)
    requests_per_second: int | None = Field(
        default=None, ge=1, description="Per pod: the metric ratchet_requests_per_second of a metrics API."
    )
    scale_down_after: Duration = Field(
        default="2m", description="For so long fewer pods must have been enough; then half go each minute."
    )

    rules: ClassVar = (
        Rule(
            "duration(self.scaleDownAfter) <= duration('1h')",
            "autoscaling.scaleDownAfter is longer than a HorizontalPodAutoscaler takes: write 1h or less",
            lambda self: seconds(self.scale_down_after) <= 3600,
        ),
    )


class Gateway(ApiModel):
    """During a trial, the canary's share stands as a weight in an HTTPRoute of yours."""

    http_route_ref: LocalReference = Field(
        alias="httpRouteRef",
        description="An HTTPRoute with a backendRef to the Service of this object's name, port 8080. A trial "
        "puts the canary's Service beside it and takes it away again; nothing else is touched.",
    )


class Traffic(ApiModel):
    """Who splits requests beside the servers."""

    gateway: Gateway | None = None


class Webhook(ApiModel):
    """Each verdict that acts is posted, as JSON that Slack takes."""

    secret_ref: SecretReference = Field(description="A Secret with WEBHOOK_URL.")


class PolicyDeploymentSpec(ApiModel):
    """What the user wants."""

    source: Source
    replicas: int = Field(
        default=2, ge=1, le=1000, description="Pods that serve; at least, with autoscaling."
    )
    autoscaling: Autoscaling | None = None
    scale_to_zero_after: Duration | None = Field(
        default=None,
        description="Without a request for so long no server runs; the next request is held until one does.",
    )
    server: PodFields = PodFields()
    strategy: Strategy = Strategy()
    traffic: Traffic = Traffic()
    guards: Guards = Guards()
    webhook: Webhook | None = None
    paused: bool = False

    rules: ClassVar = (
        Rule(
            "!has(self.autoscaling) || self.replicas <= self.autoscaling.maxReplicas",
            "autoscaling.maxReplicas is below replicas: write replicas <= autoscaling.maxReplicas",
            lambda self: self.autoscaling is None or self.replicas <= self.autoscaling.max_replicas,
        ),
        Rule(
            "!has(self.scaleToZeroAfter) || duration(self.scaleToZeroAfter) >= duration('10s')",
            "scaleToZeroAfter is shorter than servers take to start: write 10s or more",
            lambda self: self.scale_to_zero_after is None or seconds(self.scale_to_zero_after) >= 10,
        ),
        Rule(
            "self.strategy.type != 'AB' || self.guards.episodeReturn.enabled",
            "strategy.type: AB reports a difference of returns: write guards.episodeReturn.enabled: true",
            lambda self: self.strategy.type != "AB" or self.guards.episode_return.enabled,
        ),
        Rule(
            "!(self.strategy.type in ['Shadow', 'BlueGreen'] && self.guards.episodeReturn.enabled)",
            "copies of requests earn no returns, so this trial would wait for ever: write "
            "guards.episodeReturn.enabled: false, or another strategy.type",
            lambda self: (
                not (self.strategy.type in ("Shadow", "BlueGreen") and self.guards.episode_return.enabled)
            ),
        ),
    )


class Lineage(ApiModel):
    """Where an arm's policy comes from."""

    job: str | None = None
    attempt: int | None = None
    checkpoint: str | None = None
    steps: int | None = None
    image: str | None = Field(default=None, description="Digest of the server's image.")
    configuration: str | None = Field(
        default=None, description="Digest of the configuration that trained it."
    )


class Arm(ApiModel):
    """One arm as it is."""

    digest: str
    name: str = Field(default="", description="The first 12 characters of the digest, for the eye.")
    revision: str = Field(default="", description="Its objects are called after the deployment and this.")
    weight: int = Field(default=0, description="Percent of new episodes, as observed.")
    replicas: int = 0
    ready: int = 0
    requests_per_second: float | None = None
    lineage: Lineage | None = None


class Trial(ApiModel):
    """What is tried, and how far it is."""

    phase: Literal["Surge", "Stage", "Promote", "Bake", "RollBack"]
    stage: int = Field(default=0, description="Counted from 0.")
    since: str = Field(description="When the phase, or the stage at its weight, began.")
    waiting_since: str | None = Field(
        default=None, description="Since when it lacks pods or a route that is followed: progressDeadline."
    )
    paused: bool = False
    attempt: int = 1


class DecisionRecord(ApiModel):
    """The verdict of one guard and why."""

    guard: str
    verdict: Literal["Pass", "Fail", "NotEnoughEvidence", "SourceDown"]
    message: str = ""
    canary: float | None = None
    stable: float | None = None
    canary_samples: int = 0
    stable_samples: int = 0
    estimate: float | None = Field(
        default=None, description="What is tested: a rate, a ratio of rates, a difference of means."
    )
    low: float | None = Field(default=None, description="Bounds of the estimate, valid at all times.")
    high: float | None = None
    bound: float | None = None
    odds: float | None = Field(default=None, description="Against the bound; for it where it is proven.")
    needed: float | None = Field(default=None, description="Odds at which the guard fails.")
    proven: bool = False
    action: Literal["None", "Advance", "Hold", "RollBack"] = "None"
    time: str


class PastTrial(ApiModel):
    """How a trial ended."""

    digest: str
    outcome: Literal["Promoted", "Failed", "TimedOut", "Aborted", "Superseded"]
    message: str = ""
    time: str


class Quarantined(ApiModel):
    """A digest that is not tried again, until `ratchet rollout retry`."""

    digest: str
    message: str = ""


class PolicyDeploymentStatus(ApiModel):
    """What is. `replicas` and `selector` serve the scale subresource."""

    observed_generation: int | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default=[])
    replicas: int = 0
    ready: int = 0
    selector: str | None = None
    source_digest: str | None = Field(default=None, description="What the source means now.")
    stable: Arm | None = None
    canary: Arm | None = None
    previous: str | None = Field(default=None, description="Digest that served before: undo goes back to it.")
    trial: Trial | None = None
    cooldown_until: str | None = Field(default=None, description="No trial begins before.")
    command: str | None = Field(
        default=None, description="The annotation ratchet.dev/rollout that was taken last, verb/id."
    )
    decisions: Annotated[list[DecisionRecord], Field(max_length=24)] = Field(default=[])
    history: Annotated[list[PastTrial], Field(max_length=16)] = Field(default=[])
    quarantined: Annotated[list[Quarantined], Field(max_length=32)] = Field(default=[])
