"""Which checkpoint a PolicyDeployment's source means now, and which of those it is followed to."""

from dataclasses import dataclass

from pydantic import ValidationError

from ratchet.api.v1alpha1 import RLTrainingJobSpec
from ratchet.api.v1alpha1.policydeployment import (
    CheckpointSource,
    Lineage,
    PolicyDeploymentSpec,
    TrainingJobSource,
)
from ratchet.api.v1alpha1.trainingjob import CheckpointInfo, Checkpoints
from ratchet_operator.conditions import Verdict, no, words_of, yes
from ratchet_operator.kinds import Json, is_deleting, status_of, sub
from ratchet_operator.rollout.book import Book
from ratchet_operator.rollout.revision import Checkpoint
from ratchet_operator.specs import parsed

FOUND = yes("SourceFound")
WAITING = "WaitingForCheckpoint"


@dataclass(frozen=True, slots=True)
class Sourced:
    """What the source means now, and why where it means nothing."""

    checkpoint: Checkpoint | None
    verdict: Verdict


def source_of(spec: PolicyDeploymentSpec, job: Json | None, accepted: Checkpoint | None) -> Sourced:
    """The checkpoint that the source names.

    Args:
        spec: of the PolicyDeployment.
        job: the RLTrainingJob that it names, None where there is none.
        accepted: what it named before. A step stays what it is when the job shows others.

    """
    source = spec.source
    if source.checkpoint is not None:
        return Sourced(_named(source.checkpoint), FOUND)
    if source.training_job is None:
        return Sourced(None, no("SourceUnknown", "spec.source names nothing."))
    found = _of_job(source.training_job, job)
    is_known = accepted is not None and accepted.origin == origin_of(spec)
    if found.verdict.reason == WAITING and source.training_job.checkpoint == "Step" and is_known:
        return Sourced(accepted, FOUND)
    return found


def origin_of(spec: PolicyDeploymentSpec) -> str:
    """What a checkpoint is found by; how it is followed is no part of it."""
    source = spec.source
    if source.checkpoint is not None:
        return f"checkpoint/{source.checkpoint.digest}/{source.checkpoint.s3.to_wire()}"
    job = source.training_job
    return f"job/{job.job_ref.name}/{job.checkpoint}/{job.step}" if job is not None else ""


def follow(
    spec: PolicyDeploymentSpec, book: Book, found: Checkpoint | None, promoting: bool
) -> Checkpoint | None:
    """The checkpoint to serve: a newer one where the source is followed, else the one accepted before.

    A trial is not disturbed by what its job has learned meanwhile, or none would ever end while it trains.

    Args:
        spec: of the PolicyDeployment.
        book: what is remembered.
        found: what the source means now.
        promoting: `promote` was asked for, and nothing is on trial.

    """
    accepted = book.accepted
    if found is None or accepted is None or accepted.origin != found.origin:
        return found or (accepted if accepted is not None and accepted.origin == origin_of(spec) else None)
    if accepted.digest == found.digest or spec.source.training_job is None:
        return found.model_copy(update={"lineage": accepted.lineage})
    match spec.source.training_job.follow:
        case "Automatic":
            return accepted if book.state.trial is not None else found
        case "OnApproval":
            return found if promoting else accepted
        case "Never":
            return accepted


def _named(source: CheckpointSource) -> Checkpoint:
    s3 = source.s3
    return Checkpoint(
        origin=f"checkpoint/{source.digest}/{s3.to_wire()}",
        digest=source.digest,
        uri=f"s3://{s3.bucket}/{s3.prefix.strip('/')}",
        endpoint=s3.endpoint,
        region=s3.region,
        secret=s3.secret_ref.name if s3.secret_ref is not None else None,
    )


def _of_job(source: TrainingJobSource, job: Json | None) -> Sourced:
    name = source.job_ref.name
    if job is None or is_deleting(job):
        return Sourced(None, no("JobNotFound", f"There is no RLTrainingJob {name} in this namespace."))
    try:
        spec = parsed(RLTrainingJobSpec, job)
        stored = Checkpoints.model_validate(sub(status_of(job), "checkpoints"), extra="ignore")
    except ValidationError as error:
        return Sourced(None, no("JobUnreadable", f"RLTrainingJob {name}: {words_of(error)}"))
    chosen = _chosen(source, stored)
    if chosen is None:
        return Sourced(None, no(WAITING, _waiting(source, stored)))
    s3 = spec.checkpoint.s3
    return Sourced(
        Checkpoint(
            origin=f"job/{name}/{source.checkpoint}/{source.step}",
            digest=chosen.digest,
            uri=chosen.uri,
            endpoint=s3.endpoint,
            region=s3.region,
            secret=s3.secret_ref.name if s3.secret_ref is not None else None,
            # By which attempt and which configuration its servers say, who have read it.
            lineage=Lineage(job=name, checkpoint=chosen.name, steps=chosen.steps),
        ),
        FOUND,
    )


def _chosen(source: TrainingJobSource, stored: Checkpoints) -> CheckpointInfo | None:
    match source.checkpoint:
        case "Best":
            return stored.best
        case "Latest":
            return stored.latest
        case "Step":
            known = (stored.latest, stored.best)
            return next((one for one in known if one is not None and one.steps == source.step), None)


def _waiting(source: TrainingJobSource, stored: Checkpoints) -> str:
    name = source.job_ref.name
    if stored.latest is None:
        return f"RLTrainingJob {name} has written no checkpoint yet."
    if source.checkpoint == "Best":
        return f"RLTrainingJob {name} has evaluated no checkpoint yet."
    known = {one.steps for one in (stored.latest, stored.best) if one is not None}
    return (
        f"RLTrainingJob {name} shows no checkpoint at step {source.step}, but at "
        f"{' and '.join(str(steps) for steps in sorted(known))}. An older one is served by "
        "source.type: Checkpoint with its s3 and digest."
    )
