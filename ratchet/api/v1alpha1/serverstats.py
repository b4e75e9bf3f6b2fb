"""The JSON that a policy server answers on /v1/stats, and the route that it takes on /v1/route.

Counters only ever grow within one incarnation. A reader takes differences of two answers of the same
`incarnation`; a new one starts from zero.
"""

from typing import Annotated, Literal

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel, FreeForm
from ratchet.api.v1alpha1.policydeployment import Lineage

STATS_VERSION = 1
COHORT_SECONDS = 10.0  # episodes that begin in the same stretch of time are compared with each other
COHORTS_KEPT = 120
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]  # JSON knows no largest number; what counts with them does
# Ten to a factor of ten (ISO 3): a quantile that doubles moves by three.
LATENCY_BOUNDS_SECONDS = (
    0.0001, 0.000125, 0.00016, 0.0002, 0.00025, 0.000315, 0.0004, 0.0005, 0.00063, 0.0008,
    0.001, 0.00125, 0.0016, 0.002, 0.0025, 0.00315, 0.004, 0.005, 0.0063, 0.008,
    0.01, 0.0125, 0.016, 0.02, 0.025, 0.0315, 0.04, 0.05, 0.063, 0.08,
    0.1, 0.125, 0.16, 0.2, 0.25, 0.315, 0.4, 0.5, 0.63, 0.8, 1.0,
)  # fmt: skip


class Route(ApiModel):
    """Which share of the episodes goes to the canary. A server starts with none: everything is its own.

    Whatever the weight, 0 too, an episode that names `digest` as its policy goes to the canary. So a route of
    weight 0 with a digest takes no new episode and lets those there end there; one without canary, or without
    digest, takes them all back.
    """

    generation: Count = Field(default=0, description="Of the writer; an older one is refused.")
    canary: str | None = Field(default=None, pattern=r"^https?://[^/?#]+$", description="http://host:port")
    weight: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False, description="Share of the episodes.")
    mirror: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of this server's own episodes of which the canary gets copies.",
    )
    salt: str = Field(
        default="",
        max_length=256,
        description="Chooses which episodes; the same one through a whole rollout.",
    )
    digest: str | None = Field(default=None, description="That the canary must answer with.")
    gateway: Literal["Stable", "Canary"] | None = Field(
        default=None,
        description="The arm to which a gateway has sent what comes here: requests without an episode are "
        "answered where they come. On a server of the canary, `canary` is the way back to the stable arm, "
        "for the episodes that are not below `weight`.",
    )


class Latency(ApiModel):
    """Seconds from the last byte of a request to its answer."""

    counts: list[Count] = Field(
        description="One for each of latencyBoundsSeconds, then those above the last."
    )
    sum_seconds: float = 0.0


class ActionStats(ApiModel):
    """What was done, for drift: counts of values, or moments of numbers.

    `counts` has one entry for each output of a discrete policy. `mean` and `m2` (sum of squared deviations)
    have one for each component of a continuous one.
    """

    number: Count = 0
    deterministic: Count | None = Field(
        default=None, description="Of `number`, those that were asked for as the most likely ones."
    )
    counts: list[Count] | None = None
    mean: list[float] | None = None
    m2: list[float] | None = None


class EvaluatedActions(ApiModel, extra="ignore"):
    """What a policy did in the trainer's evaluation: the distribution that its artifact promises.

    `counts` has one entry for each output of a discrete policy; `mean` and `deviation` have one for each
    component of a continuous one. The decisions of an episode depend on each other, so `error` is taken from
    the differences between episodes.
    """

    episodes: int = Field(ge=2)
    decisions: int = Field(ge=1)
    deterministic: bool = Field(description="Whether it took the most likely actions.")
    counts: tuple[Count, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    error: tuple[float, ...] = Field(
        description="Standard error of each share of the counts, or of each mean."
    )


class ArmStats(ApiModel):
    """What one policy did on one arm, as this server saw it.

    On the server that has the route, `stable` is itself, `canary` is behind the route, and `shadow` are the
    copies that the canary got: errors, latency and actions of answers that no client was given. On the server
    behind the route `canary` is what it was asked for clients, and `shadow` the copies.
    """

    arm: str
    digest: str = Field(description="Of the policy; empty where the other side never said it.")
    requests: Count = 0
    seconds_since_request: float | None = Field(
        default=None,
        ge=0,
        description="Since `requests` last grew: the arm is idle where this is large on every server.",
    )
    predictions: Count = 0
    errors: dict[str, Count] = Field(
        default={}, description="Failures of the policy or of its server, by class."
    )
    fallbacks: dict[str, dict[str, Count]] = Field(
        default={}, description="Answers that came from elsewhere: by the step that gave them, by reason."
    )
    mask_violations: Count = 0
    nan_answers: Count = 0
    latency: Latency
    actions: ActionStats = ActionStats()


class RouteStats(Route):
    """The route in force."""

    breaker: Literal["Closed", "Open", "HalfOpen"] = "Closed"


class ServerStats(ApiModel):
    """Where a policy server stands."""

    version: Literal[1] = STATS_VERSION
    incarnation: str
    uptime_seconds: float
    ready: bool
    draining: bool
    current: str | None = None
    previous: str | None = None
    spaces: str | None = Field(
        default=None,
        description="Digest of the observation and action space of `current`. Policies that differ in it "
        "cannot take each other's place.",
    )
    lineage: Lineage | None = Field(
        default=None, description="Where `current` comes from, as it says itself; its digest covers that."
    )
    evaluated: EvaluatedActions | None = Field(
        default=None, description="Of `current`; its artifact names none where it was not evaluated."
    )
    route: RouteStats = RouteStats()
    connections: Count = 0
    websockets: Count = Field(default=0, description="Open ones, each of which is an episode.")
    sessions: Count = 0
    shed: Count = Field(
        default=0, description="Requests answered with 503 because the queue would have grown."
    )
    copies_dropped: Count = Field(
        default=0, description="Copies for a shadow that were not sent, as too many were on their way."
    )
    repeated: Count = Field(
        default=0, description="Requests that came again under their id, and got the answer they had."
    )
    swaps: Count = 0
    episodes: list[FreeForm] = Field(default=[], description="Returns of episodes by arm and digest.")
    rewards: dict[str, Count] = Field(default={}, description="Rewards by what they found.")
    decisions: dict[str, Count] = Field(default={}, description="Rows of the log by what became of them.")
    refusals: dict[str, Count] = Field(default={}, description="Requests refused as wrong, by code.")
    latency_bounds_seconds: list[float]
    arms: list[ArmStats] = Field(default=[])
