"""How a job's ledger moves: start, failures, suspension, fallback, the end; and what an SRE is told of it.

An Occurrence is made only where the ledger moves, so it is told once however often a step is repeated.
"""

from datetime import datetime

from ratchet.api.v1alpha1 import ExitCode, TrainerStatus
from ratchet.api.v1alpha1.trainingjob import Checkpoints, Evaluations, Failure, Progress
from ratchet_operator.build.context import JobContext
from ratchet_operator.build.trainer import CONTAINER as TRAINER
from ratchet_operator.build.workers import CONTAINER as WORKER
from ratchet_operator.kinds import (
    COMPONENT_LABEL,
    POOL_LABEL,
    Json,
    items,
    label_value,
    labels_of,
    spec_of,
    sub,
)
from ratchet_operator.ledger import FAILURES_KEPT, Final, Ledger, parse_stamp, stamp
from ratchet_operator.plan import Occurrence
from ratchet_operator.policies.device import Device, DeviceChoice
from ratchet_operator.policies.failure import Action, Termination, judge, terminations
from ratchet_operator.policies.finished import finished_reason, seconds_to_deadline


def live_environment(deployment: Json | None, name: str) -> str | None:
    """A variable of the first container in a live Deployment."""
    for container in items(sub(deployment, "spec", "template", "spec"), "containers")[:1]:
        for variable in items(container, "env"):
            if variable.get("name") == name:
                return variable.get("value")
    return None


def live_attempt(deployment: Json | None) -> int:
    """The attempt that the live Deployment runs; 0 where there is none."""
    text = live_environment(deployment, "RATCHET_ATTEMPT") or ""
    return int(text) if text.isdecimal() else 0


def live_device(deployment: Json | None) -> Device | None:
    """The device of the trainer that runs now."""
    if deployment is None or not spec_of(deployment).get("replicas"):
        return None
    return "GPU" if live_environment(deployment, "RATCHET_DEVICE") == "GPU" else "CPU"


def component_pods(pods: tuple[Json, ...], component: str) -> tuple[Json, ...]:
    """The pods of one component."""
    return tuple(pod for pod in pods if labels_of(pod).get(COMPONENT_LABEL) == component)


def own_workers(context: JobContext, pods: tuple[Json, ...]) -> tuple[Json, ...]:
    """The workers of the job's own pool, not of pools that others added."""
    own = label_value(context.pool_name)
    return tuple(pod for pod in component_pods(pods, "rollouts") if labels_of(pod).get(POOL_LABEL) == own)


def advance(
    before: Ledger,
    context: JobContext,
    pods: tuple[Json, ...],
    trainer: TrainerStatus | None,
    choice: DeviceChoice,
    status: Json,
    now: datetime,
    asked: bool = True,
) -> tuple[Ledger, tuple[Occurrence, ...]]:
    """The ledger after what is seen now, and what happened in between. No deadline ends a job whose trainer
    was not `asked` yet: it may have finished.
    """
    if before.outcome is not None:
        return before, ()
    told: list[Occurrence] = []
    ledger = _start_or_pause(before, context, told, now)
    ledger = _judge_failures(ledger, context, pods, told, now)
    if trainer is not None and trainer.passed_over and trainer.epoch > ledger.fallback_epoch:
        words = f"{'; '.join(trainer.passed_over)}. Training goes on from {trainer.resumed_from}."
        told.append(Occurrence("Warning", "CheckpointPassedOver", words, f"PassedOver-{trainer.epoch}"))
        ledger = ledger.model_copy(update={"fallback_epoch": trainer.epoch})
    reason = finished_reason(trainer)
    if reason is not None and ledger.outcome is None and trainer is not None:
        message = trainer.message or f"{trainer.progress.steps} steps."
        ledger = ledger.model_copy(update={"outcome": "Succeeded", "reason": reason, "message": message})
        told.append(Occurrence("Normal", "Succeeded", f"{reason}: {message}", "Succeeded"))
    heard = asked or trainer is not None
    if ledger.outcome is None and heard and seconds_to_deadline(ledger, context.spec.stop, now) == 0:
        ledger = _out_of_time(ledger, context, final_of(trainer, status), status, told)
    if ledger.outcome is not None:
        final = final_of(trainer, status)
        return ledger.model_copy(update={"completion_time": stamp(now), "final": final}), tuple(told)
    if not context.spec.suspend:
        if choice.fell_back and not ledger.fell_back and choice.verdict is not None:
            told.append(
                Occurrence("Warning", "FallbackCPU", choice.verdict.message, f"FallbackCPU-{ledger.attempt}")
            )
        device = choice.device if choice.may_start else None
        ledger = ledger.model_copy(update={"device": device, "fell_back": choice.fell_back})
    return ledger, tuple(told)


def final_of(trainer: TrainerStatus | None, status: Json) -> Final:
    """Where training stands: as the trainer says, else as was last written."""
    if trainer is not None:
        return Final(
            progress=trainer.progress,
            evaluation=trainer.evaluation,
            checkpoints=trainer.checkpoints,
            active_seconds=int(trainer.active_seconds),
        )
    written = {
        key: status[key]
        for key in ("progress", "evaluation", "checkpoints", "activeSeconds")
        if key in status
    }
    try:
        return Final.model_validate(written)
    except ValueError:
        return Final(progress=Progress(), evaluation=Evaluations(), checkpoints=Checkpoints())


def _start_or_pause(ledger: Ledger, context: JobContext, told: list[Occurrence], now: datetime) -> Ledger:
    suspend = context.spec.suspend
    if ledger.start_time is None and not suspend:
        told.append(Occurrence("Normal", "Started", "Training starts.", "Started"))
        update = {"start_time": stamp(now), "active_since": stamp(now), "suspended": False}
        return ledger.model_copy(update=update)
    if suspend and not ledger.suspended:
        told.append(
            Occurrence(
                "Normal",
                "Suspended",
                "Training is suspended; a checkpoint is kept.",
                f"Suspended-{stamp(now)}",
            )
        )
        return ledger.model_copy(update={"suspended": True, "suspended_at": stamp(now)})
    if not suspend and ledger.suspended:
        told.append(Occurrence("Normal", "Resumed", "Training goes on.", f"Resumed-{stamp(now)}"))
        update = {"suspended": False, "suspended_at": None, "active_since": _moved_on(ledger, now)}
        return ledger.model_copy(update=update)
    return ledger


def _moved_on(ledger: Ledger, now: datetime) -> str | None:
    """`active_since` after a suspension, which does not count."""
    since, suspended = (parse_stamp(text or "") for text in (ledger.active_since, ledger.suspended_at))
    if since is None or suspended is None:
        return ledger.active_since
    return stamp(since + (now - suspended))


def _out_of_time(
    ledger: Ledger, context: JobContext, final: Final, status: Json, told: list[Occurrence]
) -> Ledger:
    """The trainer did not end by itself: no worker may have come, or the trainer itself may not start."""
    passed = f"stop.maxDuration ({context.spec.stop.max_duration}) has passed"
    found = (item for item in items(status, "conditions") if item.get("type") == "Progressing")
    waited = next((item.get("message", "") for item in found if item.get("status") != "True"), "")
    stored = final.checkpoints.latest if final.checkpoints is not None else None
    if stored is None:
        message = f"{passed}, and there is no checkpoint. {waited}".strip()
        return _failed(ledger, "MaxDurationReached", message, told)
    message = f"{passed}; the newest checkpoint is at {stored.steps} steps. {waited}".strip()
    told.append(Occurrence("Normal", "Succeeded", f"MaxDurationReached: {message}", "Succeeded"))
    return ledger.model_copy(
        update={"outcome": "Succeeded", "reason": "MaxDurationReached", "message": message}
    )


def _judge_failures(
    ledger: Ledger, context: JobContext, pods: tuple[Json, ...], told: list[Occurrence], now: datetime
) -> Ledger:
    policy = context.spec.failure_policy
    judged = {failure.id for failure in ledger.failures}
    # Nobody removes evicted pods. What the ledger has forgotten would be judged again, for ever.
    trainers = [
        termination
        for termination in terminations(component_pods(pods, "trainer"), TRAINER)
        if termination.attempt == ledger.attempt
    ][-FAILURES_KEPT:]
    workers = [
        termination
        for termination in terminations(own_workers(context, pods), WORKER)
        if termination.exit_code == ExitCode.CONFIG
    ]
    for termination in trainers:
        if termination.id in judged:
            continue
        action = judge(policy, termination)
        ledger = _recorded(ledger, termination, action, now)
        words = f"{termination.title}: {termination.sentence}"
        told.append(
            Occurrence("Warning", "TrainerFailed", f"{words} ({action})", f"TrainerFailed-{termination.id}")
        )
        if action == "FailJob":
            return _failed(ledger, termination.title, termination.sentence, told)
        if action == "Count":
            counted = ledger.failures_counted + 1
            ledger = ledger.model_copy(update={"failures_counted": counted})
            if counted > policy.backoff_limit:
                message = (
                    f"Failed {counted} times, backoffLimit is {policy.backoff_limit}. "
                    f"Last: {termination.sentence}"
                )
                return _failed(ledger, "BackoffLimitExceeded", message, told)
            return ledger.model_copy(update={"attempt": ledger.attempt + 1})
    for termination in workers:
        if termination.id not in judged and judge(policy, termination) == "FailJob":
            ledger = _recorded(ledger, termination, "FailJob", now)
            return _failed(ledger, termination.title, termination.sentence, told)
    return ledger


def _recorded(ledger: Ledger, termination: Termination, action: Action, now: datetime) -> Ledger:
    failure = Failure(
        id=termination.id,
        reason=termination.title,
        exit_code=termination.exit_code,
        message=termination.message,
        action=action,
        time=stamp(now),
    )
    return ledger.model_copy(update={"failures": (*ledger.failures, failure)[-FAILURES_KEPT:]})


def _failed(ledger: Ledger, reason: str, message: str, told: list[Occurrence]) -> Ledger:
    told.append(Occurrence("Warning", "Failed", f"{reason}: {message}", "Failed"))
    return ledger.model_copy(update={"outcome": "Failed", "reason": reason, "message": message})
