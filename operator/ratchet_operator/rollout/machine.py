"""One step of a rollout. Pure: it may be asked at any time, also after dying between any two of its writes.

Always in this order: capacity is ready, then the split changes, then observed traffic shows that it is
followed, then what is left over is scaled down. The last is no phase but a rule over all arms (`traffic`),
so nothing can be forgotten.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.evidence import Decision, Verdict
from ratchet_operator.ledger import stamp
from ratchet_operator.plan import Occurrence
from ratchet_operator.rollout.sleeping import doze, rest
from ratchet_operator.rollout.traffic import is_followed, replicas_of, split_of
from ratchet_operator.rollout.values import (
    At,
    Doubt,
    GuardPolicy,
    Outcome,
    Past,
    Pin,
    Rollout,
    Rules,
    Seen,
    Trial,
    Wanted,
)

PAST_KEPT = 10
QUARANTINED_KEPT = 32


@dataclass(frozen=True, slots=True)
class _Said:
    """The state after a phase had its say, and the condition to show."""

    state: Rollout
    reason: str
    message: str
    occurrence: Occurrence | None = None


def step(rules: Rules, state: Rollout, seen: Seen, now: datetime) -> Wanted:
    """Take one step.

    Args:
        rules: from the spec.
        state: what the step before returned, or what the cluster has kept of it.
        seen: the cluster.
        now: the operator's clock; no other clock is ever asked.

    """
    at = At(rules, seen, now)
    commanded = _obey(state, at)
    said = _advance(commanded, at, is_ordered=commanded.command != state.command)
    split = split_of(said.state, at)
    return Wanted(
        said.state,
        replicas_of(said.state, split, at),
        split,
        () if said.occurrence is None else (said.occurrence,),
        said.reason,
        said.message,
    )


def _advance(state: Rollout, at: At, *, is_ordered: bool) -> _Said:
    trial, nap = state.trial, state.nap
    if trial is None and nap is not None and nap.phase != "Drowsy":
        # What the source means by now is tried when there are requests to judge it by.
        rested = rest(state, nap, at, is_ordered=is_ordered)
        return _Said(_with(state, nap=rested.nap), rested.reason, rested.message, rested.occurrence)
    if trial is None:
        return _drowse(_idle(state, at), at)
    if trial.phase not in ("Bake", "RollBack") and trial.weight < 100 and _is_superseded(state, trial, at):
        return _roll_back(state, trial, at, "Superseded", "The source means another policy now.")
    if trial.phase != "RollBack" and state.stable is not None:
        failed = _first(at, "Fail")
        if failed is not None:
            return _roll_back(state, trial, at, "Failed", failed.sentence)
    match trial.phase:
        case "Surge":
            return _surge(state, trial, at)
        case "Stage":
            return _stage(state, trial, at)
        case "Promote":
            return _promote(state, trial, at)
        case "Bake":
            return _bake(state, trial, at)
        case "RollBack":
            return _rolling_back(state, trial, at)


def _drowse(said: _Said, at: At) -> _Said:
    """What was said, unless nobody has asked for anything for long enough."""
    dozing = doze(said.state, at)
    if dozing is None:
        return said if said.state.nap is None else replace(said, state=_with(said.state, nap=None))
    state = _with(said.state, nap=dozing.nap)
    if dozing.occurrence is None:
        return replace(said, state=state)
    return _Said(state, dozing.reason, dozing.message, dozing.occurrence)


def _idle(state: Rollout, at: At) -> _Said:
    """Nothing is on trial: whether something should be."""
    if state.pin is not None and at.seen.source not in (None, state.pin.over):
        state = _with(state, pin=None)
    wanted = _source(state, at)
    if wanted is None:
        return _Said(state, "SourceUnknown", "It can't be told which policy the source means.")
    if wanted == state.stable:
        return _Said(state, "Serving", f"{_short(wanted)} serves everybody.")
    if at.rules.paused and state.stable is not None:
        return _Said(state, "Paused", f"{_short(wanted)} is not tried while spec.paused is true.")
    if wanted in state.quarantined:
        why = state.quarantined[wanted]
        return _Said(state, "Quarantined", f"{_short(wanted)} is not tried again: {why}")
    tried = state.attempts.get(wanted, 0)
    if tried >= at.rules.attempts:
        return _Said(
            state, "AttemptsExhausted", f"{_short(wanted)} was tried {tried} times; ask for a retry."
        )
    if state.cooldown_until is not None and at.seconds_since(state.cooldown_until) < 0:
        return _Said(state, "CoolingDown", f"The next trial begins after {state.cooldown_until}.")
    if at.seen.obstacle and state.stable is not None:
        return _Said(state, "GatewayNotReady", at.seen.obstacle)
    trial = Trial(digest=wanted, begun=at.stamp, since=at.stamp, skip=state.pin is not None)
    begun = _with(state, trial=trial, attempts={wanted: tried + 1}, cooldown_until=None)
    return _say(begun, trial, "TrialStarted", f"{_short(wanted)} is brought up beside what serves.")


def _surge(state: Rollout, trial: Trial, at: At) -> _Said:
    """Capacity for the first stage comes up; nobody is sent there."""
    stage = at.stage(trial) if state.stable is not None else None
    lacks = _lacks_pods(trial, at, stage.weight if stage else 100)
    if lacks:
        return _wait(state, trial, at, "Surging", lacks)
    return _next(
        state, trial, at, "CapacityReady", "Its pods are ready.", phase="Stage" if stage else "Promote"
    )


def _stage(state: Rollout, trial: Trial, at: At) -> _Said:
    """A share of the traffic, and the guards' verdicts on it."""
    stage = at.stage(trial)
    if stage is None:
        return _next(state, trial, at, "Promoting", "It passed every stage.", phase="Promote")
    lacks = _lacks_pods(trial, at, stage.weight)
    if lacks:
        return _wait(state, trial, at, "Surging", lacks)
    if at.seen.obstacle:
        return _wait(state, trial, at, "GatewayNotReady", at.seen.obstacle)
    target = 0 if stage.mirrored else stage.weight
    if trial.weight < target:
        return _next(state, trial, at, "WeightRaised", f"{target}% of new episodes.", weight=target)
    if not is_followed(state, trial, at):
        return _wait(state, trial, at, "Routing", f"Not every pod follows {stage.weight}% yet.")
    trial = _with(trial, waiting_since=None)
    state = _with(state, trial=trial)
    if trial.paused or at.rules.paused:
        return _Said(state, "Paused", f"Paused at {stage.weight}%; guards go on watching.")
    doubted = _doubted(state, trial, at)
    if doubted is not None:
        return doubted
    left = stage.seconds - at.seconds_since(trial.since)
    if left > 0:
        return _Said(state, "Watching", f"{left:.0f} s of this stage are left.")
    if stage.approval and trial.approved < trial.stage:
        return _Said(state, "AwaitingApproval", "Every guard passes: resume, promote or abort.")
    message = f"{stage.weight}% passed. {_found(at)}".strip()
    return _next(state, trial, at, "StagePassed", message, stage=trial.stage + 1)


def _promote(state: Rollout, trial: Trial, at: At) -> _Said:
    """Capacity for everybody, then everybody, then observed to be so."""
    lacks = _lacks_pods(trial, at, 100)
    if lacks:
        return _wait(state, trial, at, "Surging", lacks)
    if at.seen.obstacle and state.stable is not None:
        return _wait(state, trial, at, "GatewayNotReady", at.seen.obstacle)
    if trial.weight < 100:
        if trial.paused or at.rules.paused:
            return _Said(state, "Paused", "Paused before it serves everybody.")
        doubted = _doubted(state, trial, at)
        if doubted is not None:
            return doubted
        return _next(state, trial, at, "WeightRaised", "100% of new episodes.", weight=100)
    if not is_followed(state, trial, at):
        return _wait(state, trial, at, "Routing", "Not every pod follows 100% yet.")
    trial = _undisturbed(trial, at)
    state = _with(state, trial=trial)
    if state.stable is not None and not at.seen.is_idle(state.stable) and not at.is_late(trial):
        # Clients that do not say which policy they began with can end their episodes only where they are.
        return _Said(state, "Draining", "Episodes of what was before are still going on.")
    message = "It serves everybody; what was before stays ready."
    return _next(state, trial, at, "Baking", message, phase="Bake")


def _bake(state: Rollout, trial: Trial, at: At) -> _Said:
    """The old policy keeps its capacity for a while, then until its last episode or the deadline ends."""
    if state.stable is not None:
        lacks = _lacks_pods(trial, at, 100)
        if lacks:
            return _wait(state, trial, at, "Surging", lacks)
        trial = _undisturbed(trial, at)
        state = _with(state, trial=trial)
        left = at.rules.bake_seconds - at.seconds_since(trial.since)
        if left > 0:
            return _Said(state, "Baking", f"What was before stays ready for {left:.0f} s more.")
        if not at.seen.is_idle(state.stable or "") and left > -at.rules.deadline_seconds:
            return _Said(state, "Draining", "Episodes of what was before are still going on.")
        doubted = _doubted(state, trial, at)
        if doubted is not None:
            return doubted
    past = Past(digest=trial.digest, outcome="Promoted", time=at.stamp)
    done = _with(
        state,
        stable=trial.digest,
        previous=state.stable or state.previous,
        trial=None,
        attempts={},
        history=(*state.history, past)[-PAST_KEPT:],
    )
    return _say(done, trial, "Promoted", f"{_short(trial.digest)} is the stable policy. {_found(at)}".strip())


def _undisturbed(trial: Trial, at: At) -> Trial:
    """The trial, whose time counts anew once it serves everybody again: meanwhile others began episodes."""
    return trial if trial.waiting_since is None else _with(trial, waiting_since=None, since=at.stamp)


def _next(state: Rollout, trial: Trial, at: At, reason: str, message: str, **changes: object) -> _Said:
    """The trial goes on: what changes, and the time at which it does."""
    onward = _with(trial, since=at.stamp, waiting_since=None, **changes)
    return _say(_with(state, trial=onward), onward, reason, f"{_short(trial.digest)}: {message}")


def _roll_back(state: Rollout, trial: Trial, at: At, outcome: Outcome, why: str) -> _Said:
    back = _with(trial, phase="RollBack", since=at.stamp, outcome=outcome, why=why)
    begun = _rolling_back(_with(state, trial=back), back, at)
    occurrence = Occurrence(
        "Normal" if outcome in ("Aborted", "Superseded") else "Warning", f"RollBack{outcome}", why,
        f"{trial.digest}/{trial.begun}/RollBack",
    )  # fmt: skip
    return _Said(begun.state, begun.reason, begun.message, occurrence)


def _rolling_back(state: Rollout, trial: Trial, at: At) -> _Said:
    """Everybody to stable as soon as one of its pods is ready, then observed to be so, then forgotten."""
    # To forget it unobserved would leave clients with what nobody runs any more: who waits too long says so.
    reason = "ProgressDeadlineExceeded" if at.is_late(trial) else "RollingBack"
    if trial.weight and state.stable is not None and not at.seen.ready(state.stable):
        return _Said(state, reason, f"Stable {_short(state.stable)} has no ready pod to go back to.")
    if trial.weight:
        return _Said(_with(state, trial=_with(trial, weight=0, since=at.stamp)), "RollingBack", trial.why)
    if state.stable is not None and not (is_followed(state, trial, at) and at.seen.is_idle(trial.digest)):
        return _Said(state, reason, f"Not every pod has left {_short(trial.digest)} yet. {trial.why}")
    outcome = trial.outcome or "Aborted"
    quarantined = dict(state.quarantined)
    if outcome in ("Failed", "Aborted"):
        quarantined = dict([*quarantined.items(), (trial.digest, trial.why)][-QUARANTINED_KEPT:])
    cools = outcome in ("Failed", "TimedOut")
    done = _with(
        state,
        trial=None,
        quarantined=quarantined,
        pin=None if state.pin and state.pin.digest == trial.digest else state.pin,
        cooldown_until=stamp(at.now + timedelta(seconds=at.rules.cooldown_seconds)) if cools else None,
        history=(
            *state.history,
            Past(digest=trial.digest, outcome=outcome, message=trial.why, time=at.stamp),
        )[-PAST_KEPT:],
    )
    return _say(done, trial, "RolledBack", trial.why)


def _lacks_pods(trial: Trial, at: At, weight: int) -> str:
    """What is missing for a share of the traffic, in words; empty where nothing is."""
    needed, ready = at.pods(weight), at.seen.ready(trial.digest)
    return (
        f"{ready} of {needed} pods of {_short(trial.digest)} are ready for {weight}%."
        if ready < needed
        else ""
    )


def _wait(state: Rollout, trial: Trial, at: At, reason: str, message: str) -> _Said:
    """Wait until the deadline, then go back; with nothing to go back to, go on waiting and say so."""
    began = trial.waiting_since or at.stamp
    if at.seconds_since(began) <= at.rules.deadline_seconds:
        return _Said(_with(state, trial=_with(trial, waiting_since=began)), reason, message)
    if state.stable is None:
        return _Said(state, "ProgressDeadlineExceeded", message)
    return _roll_back(
        state, trial, at, "TimedOut", f"Not done in {at.rules.deadline_seconds:.0f} s: {message}"
    )


def _first(at: At, verdict: str) -> Decision | None:
    """The first decision with a verdict whose guard's policy is to roll back at once."""
    for decision in at.seen.decisions:
        if decision.verdict == verdict and _policy(at, decision).on_fail == "RollBack":
            return decision
    return None


def _doubted(state: Rollout, trial: Trial, at: At) -> _Said | None:
    """What a decision that stands in the way leads to; None where all may advance, or somebody said so."""
    doubt = None if trial.skip or state.stable is None else _in_doubt(at, trial)
    if doubt is None:
        return None
    decision, do = doubt
    if do == "RollBack":
        return _roll_back(state, trial, at, "Failed", decision.sentence)
    return _Said(state, decision.verdict.value, decision.sentence)


def _found(at: At) -> str:
    """What the guards say that lets a trial go on, and what it goes on in spite of."""
    said = (one.sentence for one in at.seen.decisions if one.verdict is not Verdict.NOT_ENOUGH_EVIDENCE)
    return " ".join(said)


def _in_doubt(at: At, trial: Trial) -> tuple[Decision, Doubt] | None:
    """The decision that stands in the way, and what its guard's policy says; None where all may advance.

    Without a single sample there is nothing to act on, whatever the policy: no traffic is no reason to roll
    back, and none to go on. Past the stages nobody asks for more evidence than they did.
    """
    found: tuple[Decision, Doubt] | None = None
    for decision in at.seen.decisions:
        policy, do = _policy(at, decision), "Advance"
        match decision.verdict:
            case Verdict.FAIL:
                do = policy.on_fail
            case Verdict.SOURCE_DOWN:
                do = policy.on_source_down
            case Verdict.NOT_ENOUGH_EVIDENCE:
                is_due = bool(decision.canary_n) and at.is_late(trial)
                if trial.phase == "Stage" and not decision.moot:
                    do = policy.on_not_enough if is_due else "Hold"
            case Verdict.PASS:
                pass
        if do == "RollBack":
            return decision, do
        if do == "Hold" and found is None:
            found = decision, do
    return found


def _policy(at: At, decision: Decision) -> GuardPolicy:
    return at.rules.policies.get(decision.guard, GuardPolicy())


def _source(state: Rollout, at: At) -> str | None:
    """The digest to serve: the source's, or the one pinned by `undo` while the source stays as it was."""
    pin = state.pin
    return pin.digest if pin is not None and at.seen.source == pin.over else at.seen.source


def _is_superseded(state: Rollout, trial: Trial, at: At) -> bool:
    wanted = _source(state, at)
    return wanted is not None and wanted != trial.digest


def _obey(state: Rollout, at: At) -> Rollout:
    """Carry out a command that has not been yet."""
    command, trial = at.seen.command, state.trial
    if command is None or command.id == state.command:
        return state
    state = _with(state, command=command.id)
    is_open = trial is not None and trial.phase != "RollBack"
    can_go_back = (
        trial is not None and trial.phase != "RollBack" and (state.stable is not None or not trial.weight)
    )
    match command.verb:
        case "promote" if trial is not None and is_open:
            return _with(state, trial=_with(trial, skip=True, paused=False))
        case "pause" if trial is not None:
            return _with(state, trial=_with(trial, paused=True))
        case "resume" if trial is not None:
            return _with(state, trial=_with(trial, paused=False, approved=trial.stage))
        case "abort" | "undo" if trial is not None and can_go_back:
            return _roll_back(state, trial, at, "Aborted", f"{command.verb} was asked for.").state
        case "undo" if trial is None and state.previous is not None:
            quarantined = {key: why for key, why in state.quarantined.items() if key != state.previous}
            pin = Pin(digest=state.previous, over=at.seen.source)
            return _with(state, pin=pin, quarantined=quarantined, attempts={}, cooldown_until=None)
        case "retry" if at.seen.source is not None:
            quarantined = {key: why for key, why in state.quarantined.items() if key != at.seen.source}
            return _with(state, quarantined=quarantined, attempts={}, cooldown_until=None, pin=None)
        case _:
            return state


def _say(state: Rollout, trial: Trial, reason: str, message: str) -> _Said:
    id_ = f"{trial.digest}/{trial.begun}/{reason}/{trial.stage}/{trial.weight}"
    return _Said(state, reason, message, Occurrence("Normal", reason, message, id_))


_Model = TypeVar("_Model", bound=ApiModel)


def _with(model: _Model, **changes: object) -> _Model:
    return model.model_copy(update=changes)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
