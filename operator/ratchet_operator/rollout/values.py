"""The values of a rollout: rules from the spec, the state that is remembered, what is seen, what is wanted.

Arms are named by their revision, a digest of all that they are made of; it never changes what it means, so
"stable" is always something that can be gone back to.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.evidence import Decision
from ratchet_operator.ledger import parse_stamp, stamp
from ratchet_operator.plan import Occurrence

Phase = Literal["Surge", "Stage", "Promote", "Bake", "RollBack"]
Outcome = Literal["Promoted", "Failed", "TimedOut", "Aborted", "Superseded"]
Doubt = Literal["Hold", "RollBack", "Advance"]
Verb = Literal["promote", "pause", "resume", "abort", "undo", "retry"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a strategy.

    Attributes:
        weight: percent of new episodes that the candidate gets, or sees where mirrored.
        mirrored: it sees copies of requests and never answers.
        seconds: least time that the stage lasts.
        approval: whether the next stage waits for `resume`.

    """

    weight: int
    mirrored: bool = False
    seconds: float = 0.0
    approval: bool = False


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """What each verdict of a guard leads to. `on_not_enough` counts from the stage's deadline."""

    on_fail: Doubt = "RollBack"
    on_not_enough: Doubt = "Hold"
    on_source_down: Doubt = "Hold"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the spec asks for.

    Attributes:
        paused: no trial begins, and one that runs goes no further; it is watched all the same.
        stages: none at all for blue-green without a look and for all at once.
        bake_seconds: how long the old policy keeps its capacity after the new one serves everybody.
        deadline_seconds: for each phase to get what it waits for.
        cooldown_seconds: after a rollback, before anything is tried again.
        attempts: how often a digest is tried that does not get ready; what fails by evidence is quarantined.
        sleep_seconds: without a request, after which no pod is kept; None: they always are.

    """

    paused: bool = False
    stages: tuple[Stage, ...] = ()
    bake_seconds: float = 300.0
    deadline_seconds: float = 600.0
    cooldown_seconds: float = 60.0
    attempts: int = 3
    sleep_seconds: float | None = None
    policies: Mapping[str, GuardPolicy] = field(default_factory=dict[str, GuardPolicy])


class Trial(ApiModel):
    """A digest on its way.

    Attributes:
        begun: when it was; with the digest this names the trial.
        since: when the phase, or the stage at its weight, began.
        waiting_since: since when it lacks capacity or a route that is followed; None while it has both.
        weight: percent of new episodes that it may have; only ever grows until it is rolled back.
        approved: the last stage that `resume` let pass.
        skip: `promote` was asked for: no more stages.
        outcome, why: of a rollback, from its beginning.

    """

    digest: str
    begun: str = ""
    phase: Phase = "Surge"
    since: str
    waiting_since: str | None = None
    stage: int = 0
    weight: int = 0
    approved: int = -1
    paused: bool = False
    skip: bool = False
    outcome: Outcome | None = None
    why: str = ""


class Nap(ApiModel):
    """How far stable is from having pods, or from having none.

    Attributes:
        phase: Drowsy has its pods, and a door of the operator's beside them; Asleep has only the door; Waking
            has been asked for something, and gets its pods again.
        since: when the phase began.

    """

    phase: Literal["Drowsy", "Asleep", "Waking"]
    since: str


class Past(ApiModel):
    """How a trial ended."""

    digest: str
    outcome: Outcome
    message: str = ""
    time: str


class Pin(ApiModel):
    """`undo`: serve `digest` for as long as the source says `over`."""

    digest: str
    over: str | None


class Rollout(ApiModel):
    """All that is remembered; kept in the ledger, shown in the status.

    Attributes:
        stable: serves; None before the first policy does.
        previous: served before; what `undo` goes back to.
        quarantined: digests that are not tried again, and why.
        attempts: trials begun of the digest that was tried last.
        command: id of the last command carried out.
        history: newest last.
        nap: None while stable has its pods as a matter of course, and always while something is on trial.

    """

    stable: str | None = None
    previous: str | None = None
    trial: Trial | None = None
    nap: Nap | None = None
    quarantined: dict[str, str] = Field(default={})
    attempts: dict[str, int] = Field(default={})
    cooldown_until: str | None = None
    pin: Pin | None = None
    command: str | None = None
    history: tuple[Past, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """What a person asked for, once for each id."""

    id: str
    verb: Verb


@dataclass(frozen=True, slots=True)
class Split:
    """Who gets new episodes.

    Attributes:
        weights: percent by digest, zeros left out; empty before anything serves.
        mirrored: the arm that sees copies, and the percent of requests.
        evicted: arms that may not even go on with episodes they have begun.

    """

    weights: Mapping[str, int]
    mirrored: tuple[str, int] | None = None
    evicted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ArmSeen:
    """One arm's pods: asked for, and ready."""

    replicas: int = 0
    ready: int = 0


@dataclass(frozen=True, slots=True)
class Rest:
    """Who asks stable for anything, and which way.

    Attributes:
        quiet: seconds since any of its pods was asked; None where one does not say, or an episode is open.
        door: whether clients find the operator's door where they find no pod.
        shut: whether this operator can have no door.
        asked: whether somebody came to that door.
        found: whether clients find a pod without it.

    """

    quiet: float | None = None
    door: bool = False
    shut: bool = False
    asked: bool = False
    found: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen in the cluster.

    Attributes:
        source: digest that the spec's source means now; None where it can't be told.
        arms: by digest, each that has a Deployment.
        demand: pods that the whole traffic needs.
        routed: the split as it is written in the cluster.
        split: what every serving pod says that it follows; None where they don't agree, or don't answer.
        traffic: by digest, seconds that are missing until the arm is idle; one that is not there has no pod
            that was asked. None while no split is followed.
        decisions: of the guards, about the present trial.
        rest: of stable.
        obstacle: why nobody can be sent to the trial, in words; empty where that can be done.

    """

    source: str | None = None
    arms: Mapping[str, ArmSeen] = field(default_factory=dict[str, ArmSeen])
    demand: int = 1
    routed: Split = field(default_factory=lambda: Split({}))
    split: Split | None = None
    traffic: Mapping[str, int] | None = None
    decisions: tuple[Decision, ...] = ()
    command: Command | None = None
    obstacle: str = ""
    rest: Rest = Rest()

    def ready(self, digest: str | None) -> int:
        """Ready pods of an arm."""
        return self.arms.get(digest or "", ArmSeen()).ready

    def follows(self, split: Split) -> bool:
        """Whether the pods have been observed to follow this split."""
        return self.split == split and self.traffic is not None

    def is_idle(self, digest: str) -> bool:
        """Whether no traffic reaches an arm, as far as the present split goes."""
        return self.traffic is not None and not self.traffic.get(digest, 0)


@dataclass(frozen=True, slots=True)
class At:
    """Where a step stands: rules, what is seen, and the time by the operator's clock."""

    rules: Rules
    seen: Seen
    now: datetime

    @property
    def stamp(self) -> str:
        """The time as Kubernetes writes it."""
        return stamp(self.now)

    def seconds_since(self, text: str) -> float:
        """Seconds since a stamp, below 0 when it is to come."""
        then = parse_stamp(text)
        return math.inf if then is None else (self.now - then).total_seconds()

    def is_late(self, trial: Trial) -> bool:
        """Whether the trial's phase or stage began longer ago than the deadline."""
        return self.seconds_since(trial.since) > self.rules.deadline_seconds

    def stage(self, trial: Trial) -> Stage | None:
        """The stage of a trial, None where there is no further one."""
        if trial.skip or trial.stage >= len(self.rules.stages):
            return None
        return self.rules.stages[trial.stage]

    def pods(self, weight: int) -> int:
        """Pods that a share of the traffic needs."""
        return max(1, math.ceil(self.seen.demand * weight / 100))


@dataclass(frozen=True, slots=True)
class Wanted:
    """One step's result. Written in the order of the fields.

    Attributes:
        replicas: of each arm; 0 means that its Deployment may go.
        reason, message: of the condition Progressing, for machines and for people.

    """

    state: Rollout
    replicas: Mapping[str, int]
    split: Split
    occurrences: tuple[Occurrence, ...]
    reason: str
    message: str
