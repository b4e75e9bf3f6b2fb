"""What the status of a PolicyDeployment says: who serves, what is tried and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ratchet.api.v1alpha1.policydeployment import (
    Arm,
    DecisionRecord,
    PastTrial,
    PolicyDeploymentStatus,
    Quarantined,
    Trial,
)
from ratchet.evidence import Decision
from ratchet.evidence import Verdict as Finding
from ratchet_operator.build.server import CONTAINER
from ratchet_operator.build.serving import ServingContext
from ratchet_operator.conditions import Verdict, conditions, no, unknown, yes
from ratchet_operator.kinds import REVISION_LABEL, Json, items, labels_of, meta, status_of
from ratchet_operator.policies.waiting import alive, is_ready, why_not_ready
from ratchet_operator.reconcile.source import Sourced
from ratchet_operator.rollout.book import Book
from ratchet_operator.rollout.remembering import record
from ratchet_operator.rollout.routes import serving_arm
from ratchet_operator.rollout.values import Rollout, Wanted

SHORT = 12
DECISIONS_SHOWN = 24
STANDING = frozenset(
    {"Quarantined", "AttemptsExhausted", "CoolingDown", "ProgressDeadlineExceeded", "SourceUnknown"}
)
"""Reasons with which nothing goes on until somebody does something, or some time has passed."""
BY_GATEWAY = frozenset({"Serving", "GatewayNotReady", "Routing"})
"""Reasons that say less than what is wrong with the user's gateway, where something is."""
APPROVABLE = frozenset({"Serving", "ScaledToZero", "Quarantined", "AttemptsExhausted"})
"""Reasons with which nothing goes on until `promote` begins the trial of a newer checkpoint."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a step has found, to be told.

    Attributes:
        demand: pods that the whole traffic needs.
        problem: what stands in the way and is no pod's doing.
        trouble: why a server did not take its route.
        rates: requests a second by arm.
        obstacle: why the user's gateway can send nobody to a trial.

    """

    book: Book
    wanted: Wanted
    decisions: Sequence[Decision]
    sourced: Sourced
    demand: int
    problem: Verdict | None
    trouble: str
    pods: tuple[Json, ...]
    rates: Mapping[str, float]
    obstacle: Verdict | None = None

    @property
    def state(self) -> Rollout:
        """The machine's."""
        return self.book.state

    @property
    def nap(self) -> str | None:
        """Whether stable has, or may have, no pods as a matter of course."""
        nap = self.state.nap
        return nap.phase if nap is not None and nap.phase != "Drowsy" else None

    @property
    def serving(self) -> str | None:
        """The arm that clients are sent to."""
        return serving_arm(self.state, self.wanted.split)

    def of(self, arm: str | None) -> list[Json]:
        """The pods of an arm."""
        return [pod for pod in self.pods if arm and labels_of(pod).get(REVISION_LABEL) == arm]


def serving_status(obj: Json, context: ServingContext, shown: Shown, now: datetime) -> Json:
    """The whole status."""
    live, generation = status_of(obj), meta(obj).get("generation", 0)
    state, book = shown.state, shown.book
    trial = state.trial
    canary = trial.digest if trial is not None else None
    source = book.accepted.digest if book.accepted is not None else None
    own = {pod_name for arm in (state.stable, canary) for pod_name in _names(shown.of(arm))}
    mine = [pod for pod in shown.pods if meta(pod).get("name") in own]
    status: Json = PolicyDeploymentStatus(
        observed_generation=generation,
        replicas=len(alive(mine)),
        ready=sum(is_ready(pod) for pod in mine),
        selector=",".join(f"{key}={value}" for key, value in sorted(context.selector().items())),
        source_digest=source,
        stable=_arm(shown, state.stable),
        canary=_arm(shown, canary),
        previous=book.digests.get(state.previous or ""),
        trial=Trial(
            phase=trial.phase,
            stage=trial.stage,
            since=trial.since,
            waiting_since=trial.waiting_since,
            paused=trial.paused,
            attempt=state.attempts.get(trial.digest, 1),
        )
        if trial is not None
        else None,
        cooldown_until=state.cooldown_until,
        command=state.command,
        decisions=[
            *book.records,
            *_current(shown.decisions, items(live, "decisions"), now),
        ][-DECISIONS_SHOWN:],
        history=[
            PastTrial(
                digest=book.digests.get(past.digest, past.digest),
                outcome=past.outcome,
                message=past.message,
                time=past.time,
            )
            for past in state.history
        ],
        quarantined=[
            Quarantined(digest=book.digests.get(arm, arm), message=why)
            for arm, why in state.quarantined.items()
        ],
    ).to_wire()
    job = context.spec.source.training_job
    verdicts = _verdicts(shown, job.follow if job is not None else None)
    status["conditions"] = conditions(live.get("conditions"), verdicts, generation, now)
    return status


def _names(pods: list[Json]) -> list[str]:
    return [meta(pod).get("name", "") for pod in pods]


def _arm(shown: Shown, arm: str | None) -> Arm | None:
    revision = shown.book.revisions.get(arm or "")
    if arm is None or revision is None:
        return None
    pods, where = shown.of(arm), revision.checkpoint
    image = next((image for pod in pods if (image := _image(pod))), None)
    return Arm(
        revision=arm,
        digest=where.digest,
        name=where.digest.removeprefix("sha256:")[:SHORT],
        weight=shown.book.routed.weights.get(arm, 0),
        replicas=len(alive(pods)),
        ready=sum(is_ready(pod) for pod in pods),
        requests_per_second=shown.rates.get(arm),
        lineage=where.lineage.model_copy(update={"image": image or revision.image}),
    )


def _image(pod: Json) -> str | None:
    for seen in items(status_of(pod), "containerStatuses"):
        if seen.get("name") == CONTAINER and seen.get("imageID"):
            return seen["imageID"]
    return None


def _current(decisions: Sequence[Decision], told: Sequence[Json], now: datetime) -> list[DecisionRecord]:
    """The present verdicts; one that says what it said keeps its time, and is no reason to write."""
    found: list[DecisionRecord] = []
    for one in decisions:
        fresh = record(one, _action(one), now)
        times = (old["time"] for old in told if old == {**fresh.to_wire(), "time": old.get("time")})
        found.append(fresh.model_copy(update={"time": next(times, fresh.time)}))
    return found


def _action(decision: Decision) -> str:
    return "Hold" if decision.verdict in (Finding.NOT_ENOUGH_EVIDENCE, Finding.SOURCE_DOWN) else "None"


def _verdicts(shown: Shown, follow: str | None) -> dict[str, Verdict]:
    return {
        "Available": _available(shown),
        "Progressing": _progressing(shown, follow),
        "Degraded": _degraded(shown),
    }


def _available(shown: Shown) -> Verdict:
    serving = shown.serving
    pods = shown.of(serving)
    ready = sum(is_ready(pod) for pod in pods)
    if ready and shown.state.stable is not None:
        return yes("ServersReady", f"{ready} of {shown.demand} servers are ready.")
    if shown.problem is not None:
        return shown.problem
    if shown.nap is not None:
        return yes("ScaledToZero", "Requests are held until a server is ready.")
    if serving is None:
        return shown.sourced.verdict if not shown.sourced.verdict.holds else no("NothingServed", "")
    return why_not_ready("server", pods) if not ready else no("Starting", "No server was asked yet.")


def _progressing(shown: Shown, follow: str | None) -> Verdict:
    wanted, trial = shown.wanted, shown.state.trial
    has_newer = follow != "Never" and _has_newer(shown)
    if shown.problem is not None:
        return shown.problem
    if trial is None and not shown.sourced.verdict.holds:
        return shown.sourced.verdict
    if shown.obstacle is not None and wanted.reason in BY_GATEWAY:
        return shown.obstacle
    message = wanted.message
    if trial is not None:
        lagging = [pod for pod in alive(shown.of(trial.digest)) if not is_ready(pod)]
        if wanted.reason in ("Surging", "ProgressDeadlineExceeded") and lagging:
            message = f"{message} {why_not_ready('server', lagging).message}"
        if wanted.reason == "Routing" and shown.trouble:
            message = f"{message} {shown.trouble}"
        if has_newer:
            message = f"{message} A newer checkpoint waits for its turn."
    elif has_newer and follow == "OnApproval" and wanted.reason in APPROVABLE:
        promote = "There is a newer checkpoint: ratchet rollout promote begins it."
        return yes("AwaitingApproval", f"{message} {promote}")
    elif shown.nap is not None and _is_to_come(shown):
        message = f"{message} Another policy is tried when requests come."
    if wanted.reason in STANDING:
        return no(wanted.reason, message)
    return yes(wanted.reason, message)


def _has_newer(shown: Shown) -> bool:
    newer, accepted = shown.sourced.checkpoint, shown.book.accepted
    return newer is not None and accepted is not None and newer.digest != accepted.digest


def _is_to_come(shown: Shown) -> bool:
    """Whether the source means another policy than the one that serves."""
    accepted, stable = shown.book.accepted, shown.book.revisions.get(shown.state.stable or "")
    return accepted is not None and stable is not None and accepted.digest != stable.checkpoint.digest


def _degraded(shown: Shown) -> Verdict:
    state = shown.state
    if state.stable is None:
        return unknown("NothingServes", "Nothing serves yet.")
    ready = sum(is_ready(pod) for pod in shown.of(shown.serving))
    if ready < shown.demand and shown.nap is None:
        return yes("TooFewServers", f"{ready} of {shown.demand} servers are ready.")
    if shown.wanted.reason in ("Quarantined", "AttemptsExhausted"):
        return yes(shown.wanted.reason, shown.wanted.message)
    return no("AsWanted", "")
