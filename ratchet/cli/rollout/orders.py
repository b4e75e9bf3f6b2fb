"""What a person can order of a rollout, and whether it makes sense now. Pure; the operator carries it out."""

import secrets
from typing import Literal

from ratchet.cli.rollout.seen import Seen, short

Verb = Literal["promote", "pause", "resume", "abort", "undo", "retry"]


def command(verb: Verb) -> str:
    """A new value of the annotation: the operator carries each out once."""
    return f"{verb}/{secrets.token_hex(4)}"


def refusal(verb: Verb, seen: Seen) -> str | None:
    """Why an order makes no sense now, and what would; None where it does."""
    name, trial = seen.name, seen.status.trial
    if seen.is_leaving:
        return f"{name} is being deleted"
    if not seen.status.conditions:
        return f"the operator has not looked at {name} yet: there is nothing to {verb}"
    if seen.spec.paused and verb in ("pause", "resume"):
        return f"the manifest of {name} says paused: true, which holds until it says paused: false"
    if trial is None:
        return _idle(verb, seen)
    tried = short(seen.status.canary.digest) if seen.status.canary else "the trial"
    if verb == "retry":
        return f"{tried} is on trial now: there is nothing to retry"
    if trial.phase == "RollBack":
        return f"{tried} is being rolled back already: {seen.message}"
    match verb:
        case "promote" if trial.phase in ("Promote", "Bake"):
            return f"{tried} is being promoted already: {seen.message}"
        case "pause" if trial.phase == "Bake":
            return f"{tried} serves everybody already; to take it back: ratchet rollout undo {name}"
        case "pause" if trial.paused:
            return f"{name} is paused already"
        case "resume" if not trial.paused and not _waits_for_approval(seen):
            return f"{name} is not paused and waits for no approval: {seen.message}"
        case "abort" | "undo" if seen.status.stable is None:
            return f"{tried} is the first policy of {name}: there is none to go back to"
        case _:
            return None


def _idle(verb: Verb, seen: Seen) -> str | None:
    name, status = seen.name, seen.status
    serves = short(status.stable.digest) if status.stable else "no policy"
    is_newer = status.source_digest not in (None, status.stable.digest if status.stable else None)
    nothing = f"{name} has nothing on trial, {serves} serves"
    if seen.spec.paused and verb != "abort":
        return f"{nothing}, and no trial begins while its manifest says paused: true"
    again = f"; to try {short(status.source_digest or '')} again: ratchet rollout retry {name}"
    match verb:
        case "promote":
            if seen.reason == "AwaitingApproval":
                return None
            return f"{nothing}: there is nothing to promote" + (again if is_newer else "")
        case "abort":
            back = (
                f"; to go back to the policy before: ratchet rollout undo {name}" if status.previous else ""
            )
            return f"{nothing}: there is nothing to abort{back}"
        case "undo":
            return None if status.previous else f"{nothing}, and none did before it: there is nothing to undo"
        case "retry":
            if is_newer:
                return None
            return f"{nothing}, which is what the source means: there is nothing to retry"
        case _:
            return f"{nothing}: there is nothing to {verb}"


def _waits_for_approval(seen: Seen) -> bool:
    """Whether this stage ends with a person's word, be it given early."""
    strategy, trial = seen.spec.strategy, seen.status.trial
    if trial is None or trial.phase != "Stage":
        return seen.reason == "AwaitingApproval"
    match strategy.type:
        case "Canary":
            planned = strategy.canary.steps
            return trial.stage < len(planned) and planned[trial.stage].approval
        case "BlueGreen":
            return strategy.blue_green.approval
        case "Shadow":
            return strategy.shadow.then == "Wait"
        case "AB":
            return True
        case "AllAtOnce":
            return False
