"""What the status of an RLTrainingJob says: conditions that answer "what is it waiting for", and progress."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ratchet.api.v1alpha1 import RLTrainingJobStatus
from ratchet_operator.build.context import JobContext
from ratchet_operator.conditions import Verdict, conditions, no, unknown, yes
from ratchet_operator.kinds import Json, items, spec_of, status_of
from ratchet_operator.ledger import Ledger
from ratchet_operator.policies.device import DeviceChoice
from ratchet_operator.policies.progress import seconds_until_due
from ratchet_operator.policies.waiting import alive, is_ready, ready_or_why, why_not_ready
from ratchet_operator.reconcile.history import component_pods, final_of, own_workers
from ratchet_operator.reconcile.patching import soft_patch

if TYPE_CHECKING:
    from ratchet_operator.reconcile.job import JobSeen

PROGRESS_FIELDS = ("progress", "evaluation", "checkpoints", "activeSeconds", "workers")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What stands in the way and is not a pod's doing."""

    taken: str = ""
    refused: str = ""
    missing_secrets: tuple[str, ...] = ()


def job_status(
    job: Json,
    context: JobContext,
    seen: JobSeen,
    ledger: Ledger,
    choice: DeviceChoice,
    waiting: Waiting,
    now: datetime,
) -> tuple[Json, float]:
    """The whole status, and in how many seconds progress may be written."""
    live: Json = status_of(job)
    generation = job["metadata"].get("generation", 0)
    final = ledger.final or final_of(seen.trainer, live)
    workers = own_workers(context, seen.pods)
    wanted_workers = 0 if ledger.outcome or context.spec.suspend else _wanted_workers(context, seen)
    ready_workers = sum(is_ready(pod) for pod in workers)
    verdicts = _verdicts(context, seen, ledger, choice, waiting, wanted_workers, workers)
    status: Json = RLTrainingJobStatus(
        observed_generation=generation,
        start_time=ledger.start_time,
        completion_time=ledger.completion_time,
        attempt=ledger.attempt,
        failures=list(ledger.failures),
        failures_counted=ledger.failures_counted,
        device=ledger.device,
        progress=final.progress,
        evaluation=final.evaluation,
        checkpoints=final.checkpoints,
        active_seconds=final.active_seconds,
        redis_secret_uid=seen.secrets.get(context.redis_secret_name),
    ).to_wire()
    status["workers"] = {"wanted": wanted_workers, "ready": 0 if ledger.outcome else ready_workers}
    status["conditions"] = conditions(live.get("conditions"), verdicts, generation, now)
    return status, seconds_until_due(seen.progress_written, seen.jobs, now)


def status_patch(job: Json, wanted: Json, due_in: float) -> tuple[Json | None, float | None]:
    """The patch to write now, and in how many seconds to look again where it has to wait its turn.

    What changes an answer is written at once; progress, and why an answer is what it was, wait their turn;
    time passing alone is no news.
    """
    return soft_patch(status_of(job), wanted, due_in, PROGRESS_FIELDS)


def _wanted_workers(context: JobContext, seen: JobSeen) -> int:
    rollouts = context.spec.rollouts
    asked = spec_of(seen.pool).get("replicas", rollouts.replicas)
    least = rollouts.min_replicas or rollouts.replicas
    return max(least, min(asked, rollouts.max_replicas or rollouts.replicas))


def _verdicts(
    context: JobContext,
    seen: JobSeen,
    ledger: Ledger,
    choice: DeviceChoice,
    waiting: Waiting,
    wanted_workers: int,
    workers: tuple[Json, ...],
) -> dict[str, Verdict]:
    """Headline first, since `kubectl get` prints the first that is True."""
    if ledger.outcome is not None:
        ended = {ledger.outcome: yes(ledger.reason, ledger.message)}
        return {**ended, "Progressing": no("Finished", "Training has ended.")}
    if context.spec.suspend:
        return {
            "Suspended": yes("SuspendedByUser", "spec.suspend is true."),
            "Progressing": no("Suspended", "spec.suspend is true."),
        }
    experience = _experience(context, seen, waiting)
    rollouts = _rollouts(seen, wanted_workers, workers)
    accelerator = _accelerator(context, seen, choice)
    verdicts = {
        "Progressing": _progressing(context, seen, waiting, choice, experience, rollouts),
        "ExperienceReady": experience,
        "RolloutsReady": rollouts,
    }
    if accelerator is not None:
        verdicts["AcceleratorReady"] = accelerator
    return verdicts


def _experience(context: JobContext, seen: JobSeen, waiting: Waiting) -> Verdict:
    if context.is_redis_managed:
        return ready_or_why("Redis", component_pods(seen.pods, "redis"))
    if context.redis_secret_name in waiting.missing_secrets:
        return no("SecretNotFound", f"There is no Secret {context.redis_secret_name}.")
    return yes("External", f"The Redis in Secret {context.redis_secret_name} is used.")


def _rollouts(seen: JobSeen, wanted: int, workers: tuple[Json, ...]) -> Verdict:
    """What the pool says where it has seen that workers are missing: it knows best why."""
    ready = sum(is_ready(pod) for pod in workers)
    if ready >= wanted:
        return yes("AllReady", "All workers are ready.")
    for said in items(status_of(seen.pool), "conditions"):
        if said.get("type") == "Ready" and said.get("status") == "False":
            return no(said.get("reason", ""), said.get("message", ""))
    return why_not_ready("worker", [pod for pod in alive(workers) if not is_ready(pod)])


def _accelerator(context: JobContext, seen: JobSeen, choice: DeviceChoice) -> Verdict | None:
    gpu = context.spec.trainer.gpu
    if choice.verdict is None or gpu is None or choice.device == "CPU" or not choice.may_start:
        return choice.verdict
    trainers = component_pods(seen.pods, "trainer")
    if not any(is_ready(pod) for pod in trainers):
        why = why_not_ready("trainer", trainers, gpu.resource_name)
        if why.reason == "InsufficientGPU":
            return why
    return choice.verdict


def _progressing(
    context: JobContext,
    seen: JobSeen,
    waiting: Waiting,
    choice: DeviceChoice,
    experience: Verdict,
    rollouts: Verdict,
) -> Verdict:
    """The first thing that the job waits for, in the order in which things are needed."""
    if waiting.taken:
        return no("NameTaken", f"{waiting.taken} exists and belongs to someone else: rename it, or this job.")
    if waiting.refused:
        return no("Refused", waiting.refused)
    if not choice.may_start and choice.verdict is not None:
        return no(choice.verdict.reason, choice.verdict.message)
    if waiting.missing_secrets:
        names = ", ".join(waiting.missing_secrets)
        return no(
            "SecretNotFound", f"There is no Secret {names} in namespace {context.namespace}: create it."
        )
    if not experience.holds:
        return no(experience.reason, experience.message)
    trainers = component_pods(seen.pods, "trainer")
    gpu = context.spec.trainer.gpu
    if not any(is_ready(pod) for pod in trainers):
        return why_not_ready("trainer", trainers, gpu.resource_name if gpu is not None else None)
    trainer = seen.trainer
    if trainer is None:
        return unknown(
            "TrainerUnreachable", "The trainer is ready, and does not answer when asked for its status."
        )
    if trainer.state == "Training":
        return yes("Training", "The policy is being trained.")
    if trainer.state == "WaitingForWorkers":
        if rollouts.holds:
            return no(
                "WaitingForExperience", trainer.message or "The trainer waits for the first experience."
            )
        return no(rollouts.reason, rollouts.message)
    return no("TrainerStarting", trainer.message or "The trainer is starting.")
