"""One PolicyDeployment as it was seen, and what follows from that alone: where it stands, how it ended."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from ratchet.api.v1alpha1.base import seconds
from ratchet.api.v1alpha1.common import Condition
from ratchet.api.v1alpha1.policydeployment import (
    DecisionRecord,
    PolicyDeploymentSpec,
    PolicyDeploymentStatus,
)
from ratchet.cli.outcome import CommandError, Exit
from ratchet.cli.words import Resource, instant, value

ANNOTATION = "ratchet.dev/rollout"

# Nothing is on trial, and a person has to do something before anything is.
STUCK = frozenset({"Quarantined", "AttemptsExhausted"})
BAD = STUCK | {
    "Failed", "RollingBack", "RolledBack", "RollBackFailed", "RollBackTimedOut", "ProgressDeadlineExceeded",
    "InvalidSpec", "NameTaken", "Refused", "SecretNotFound", "JobUnreadable",
}  # fmt: skip
GOOD = frozenset({"Serving", "ScaledToZero", "Promoted"})
HELD = frozenset(
    {"Paused", "AwaitingApproval", "CoolingDown", "NotEnoughEvidence", "SourceDown", "Fail"}
    | {"SourceUnknown", "JobNotFound", "WaitingForCheckpoint"}
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was read of one object.

    Attributes:
        command: the annotation that orders something, `verb/id`.
        is_current: the operator has looked at this generation, and taken the command.

    """

    name: str
    namespace: str
    generation: int
    command: str | None
    is_leaving: bool
    spec: PolicyDeploymentSpec
    status: PolicyDeploymentStatus

    @property
    def is_current(self) -> bool:  # noqa: D102
        looked = (self.status.observed_generation or 0) >= self.generation
        return looked and self.command in (None, self.status.command)

    def condition(self, kind: str) -> Condition | None:
        """The condition of a type."""
        return next((one for one in self.status.conditions if one.type == kind), None)

    @property
    def decisions(self) -> list[DecisionRecord]:
        """What each guard says of the present trial; before it in the status stand verdicts that acted."""
        if self.status.trial is None or self.status.trial.phase == "Surge":
            return []
        newest: dict[str, DecisionRecord] = {}
        for record in self.status.decisions:
            newest.pop(record.guard, None)  # or it would keep the place of the one that acted
            newest[record.guard] = record
        return list(newest.values())

    @property
    def reason(self) -> str:
        """One word that says where it stands."""
        told = self.condition("Progressing")
        return told.reason if told else "Pending"

    @property
    def message(self) -> str:
        """One sentence that says why."""
        told = self.condition("Progressing")
        return told.message if told else "The operator has not looked at it yet."

    @property
    def colour(self) -> str:
        """A Rich colour for the reason."""
        if self.reason in BAD:
            return "red"
        return "green" if self.reason in GOOD else "yellow" if self.reason in HELD else "cyan"


def read(resource: Resource) -> Seen:
    """Read one object.

    Raises:
        CommandError: it is not what this release of Ratchet knows.

    """
    name = str(value(resource, "metadata.name"))
    annotations: dict[str, str] = value(resource, "metadata.annotations") or {}
    try:
        # What a newer release added is left out.
        spec = PolicyDeploymentSpec.model_validate(resource.get("spec"), extra="ignore")
        status = PolicyDeploymentStatus.model_validate(resource.get("status") or {}, extra="ignore")
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        raise CommandError(
            f"{name} was written for another release of Ratchet than this command's ({where}): "
            f"see kubectl get rlpd {name} -o yaml"
        ) from error
    return Seen(
        name,
        str(value(resource, "metadata.namespace") or ""),
        int(value(resource, "metadata.generation") or 0),
        annotations.get(ANNOTATION),
        value(resource, "metadata.deletionTimestamp") is not None,
        spec,
        status,
    )


def short(digest: str) -> str:
    """The first 12 characters of a digest, for the eye."""
    return digest.removeprefix("sha256:")[:12]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way, as people see it."""

    label: str
    state: Literal["done", "now", "ahead"]


def steps(seen: Seen) -> tuple[Step, ...]:
    """The whole way of a trial, and where on it the trial is; empty where none goes forward."""
    trial, strategy = seen.status.trial, seen.spec.strategy
    if trial is None or trial.phase == "RollBack":
        return ()
    labels: list[str] = []
    if seen.status.stable is not None:
        match strategy.type:
            case "Canary":
                labels = [f"{step.weight}%" for step in strategy.canary.steps]
            case "BlueGreen":
                labels = ["100% copies"]
            case "Shadow":
                labels = [f"{strategy.shadow.weight}% copies"]
            case "AB":
                labels = [f"{strategy.ab.weight}%"]
            case "AllAtOnce":
                labels = []
    at = {"Surge": 0, "Stage": 1 + trial.stage, "Promote": 1 + len(labels), "Bake": 2 + len(labels)}
    now = at[trial.phase]
    return tuple(
        Step(label, "done" if number < now else "now" if number == now else "ahead")
        for number, label in enumerate(["surge", *labels, "100%", "bake"])
    )


def left(seen: Seen, now: datetime) -> tuple[str, float] | None:
    """What a trial's phase waits for, and the seconds that are left of it; None where no clock runs."""
    trial, strategy = seen.status.trial, seen.spec.strategy
    if trial is None or trial.phase == "RollBack" or trial.paused:
        return None
    lasts: str | None = None
    if trial.waiting_since is not None:
        since, lasts, what = trial.waiting_since, strategy.progress_deadline, "until it gives up"
    elif trial.phase == "Stage":
        since, lasts, what = trial.since, _shortest(seen, trial.stage), "left of this step"
    elif trial.phase == "Bake":
        since, lasts, what = trial.since, strategy.bake, "left of the bake"
    else:
        return None
    then = instant(since)
    if then is None or lasts is None:
        return None
    remaining = (then + timedelta(seconds=seconds(lasts)) - now).total_seconds()
    return (what, remaining) if remaining > 0 else None


def _shortest(seen: Seen, stage: int) -> str | None:
    strategy = seen.spec.strategy
    match strategy.type:
        case "Canary":
            planned = strategy.canary.steps
            return planned[stage].min_duration if stage < len(planned) else None
        case "Shadow":
            return strategy.shadow.min_duration
        case "AB":
            return strategy.ab.min_duration
        case _:
            return None


@dataclass(frozen=True, slots=True)
class End:
    """How a rollout that was followed ended."""

    code: Exit
    sentence: str


def end(seen: Seen, followed: str | None) -> End | None:
    """How it ended; None while it goes on, or while the operator has yet to look at it.

    Args:
        seen: the newest state.
        followed: digest that was on trial before, while this was watched.

    """
    status = seen.status
    if not seen.is_current or status.trial is not None:
        return None
    past = status.history[-1] if status.history else None
    if followed is not None and past is not None and past.digest == followed:
        if past.outcome == "Promoted":
            return End(Exit.OK, f"promoted: {short(followed)} serves everybody")
        if past.outcome != "Superseded":
            return End(Exit.NO, f"rolled back: {past.message or past.outcome}")
    if seen.reason in STUCK:
        return End(Exit.NO, seen.message)
    degraded = seen.condition("Degraded")
    lacks_pods = degraded is not None and degraded.status == "True"
    if status.stable is None or seen.reason == "CoolingDown" or lacks_pods:
        return None
    serves = short(status.stable.digest)
    if seen.reason in GOOD:
        return End(Exit.OK, f"{serves} serves everybody, and nothing is on trial")
    # Superseded: the next trial is about to begin.
    return None if followed is not None else End(Exit.OK, f"{serves} serves everybody; {seen.message}")
