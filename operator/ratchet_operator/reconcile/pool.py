"""RolloutPool: an elastic Indexed Job of workers for one RLTrainingJob."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic import ValidationError

from ratchet.api.v1alpha1 import (
    ExitCode,
    PoolExperience,
    RLTrainingJobSpec,
    RolloutPoolSpec,
    RolloutPoolStatus,
    TrainerStatus,
)
from ratchet_operator.build.context import JobContext, PoolContext, pool_selector
from ratchet_operator.build.workers import CONTAINER, worker_job
from ratchet_operator.conditions import Verdict, conditions, no, yes
from ratchet_operator.drift import stamped
from ratchet_operator.kinds import (
    JOB_UID_LABEL,
    ROLLOUT_POOL,
    WORKER_JOB,
    Json,
    controller_of,
    is_deleting,
    is_owned_by,
    items,
    labels_of,
    meta,
    name_of,
    spec_of,
    status_of,
    sub,
    uid_of,
)
from ratchet_operator.ledger import parse_stamp, read_ledger
from ratchet_operator.plan import Apply, Delete, Plan
from ratchet_operator.policies.failure import Termination, terminations
from ratchet_operator.policies.progress import seconds_until_due
from ratchet_operator.policies.waiting import alive, is_ready, why_not_ready
from ratchet_operator.reconcile.children import removals, step
from ratchet_operator.reconcile.patching import soft_patch
from ratchet_operator.settings import Installation

LOOK_FOR_SECRETS = 5.0  # seconds; Secrets can't be watched
LEAST_AGE = 30.0  # seconds that a worker Job lives at least, whatever its workers do
ALL_READY = yes("AllReady", "All workers are ready.")
PROGRESS_FIELDS = ("stepsPerSecond", "waitingFraction", "ready", "replicas", "restarts")


@dataclass(frozen=True, slots=True)
class PoolSeen:
    """Everything that is seen around a pool.

    Attributes:
        job: the RLTrainingJob that the pool names, None where there is none.
        config_map: the job's ConfigMap.
        worker_jobs: batch Jobs by name that the pool's label finds.
        pods: worker pods that the pool's label finds.
        secrets: UID of the Secret with REDIS_URL, None where it is not there.
        trainer: what the job's trainer answered.

    """

    installation: Installation
    job: Json | None = None
    config_map: Json | None = None
    worker_jobs: Mapping[str, Json] = field(default_factory=dict[str, Json])
    pods: tuple[Json, ...] = ()
    secrets: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    trainer: TrainerStatus | None = None
    refused: str | None = None
    progress_written: datetime | None = None
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class _Workers:
    """What the workers should be.

    Attributes:
        pause: why there are none.
        early: what is wrong with workers that ended as if their work were done.
        when_ready: what to say once all are ready.

    """

    replicas: int
    keep: bool = True
    pause: Verdict | None = None
    early: Verdict | None = None
    when_ready: Verdict = ALL_READY


def reconcile_pool(pool: Json, seen: PoolSeen, now: datetime) -> Plan:
    """One step towards what the pool's spec asks for."""
    if is_deleting(pool):
        return Plan()
    try:
        spec = RolloutPoolSpec.model_validate(spec_of(pool))
        job_spec = RLTrainingJobSpec.model_validate(spec_of(seen.job)) if seen.job is not None else None
    except ValidationError as error:
        pause = no("InvalidSpec", "; ".join(item["msg"] for item in error.errors()))
        return Plan(status=_status(pool, None, seen, _Workers(0, pause=pause), now)[0])
    uid = uid_of(pool)
    if seen.job is None or job_spec is None or is_deleting(seen.job):
        pause = no(
            "JobNotFound", f"There is no RLTrainingJob {spec.training_job_ref.name} in this namespace."
        )
        patch, _ = _status(pool, spec, seen, _Workers(0, pause=pause), now)
        why = "its RLTrainingJob is gone"
        return Plan(status=patch, delete=tuple(removals(WORKER_JOB, seen.worker_jobs.values(), uid, why)))
    context = PoolContext(name_of(pool), uid, spec, JobContext.of(seen.job, job_spec, seen.installation))
    pods = tuple(pod for pod in seen.pods if labels_of(pod).get(JOB_UID_LABEL) == context.job.uid)
    seen = replace(seen, pods=pods)
    secret_uid = seen.secrets.get(context.job.redis_secret_name)
    workers = _workers(pool, context, seen, secret_uid)
    current = _current(context, seen, secret_uid)
    workers = replace(workers, early=exited_early(current, uid))
    wait = _seconds_to_wait(current, uid, now) if workers.replicas else 0.0
    apply, delete = ((), ()) if wait else _children(context, seen, workers, secret_uid, current)
    patch, due = _status(pool, spec, seen, workers, now)
    look = LOOK_FOR_SECRETS if secret_uid is None and not context.job.is_redis_managed else None
    requeue = min((seconds for seconds in (due, wait, look) if seconds), default=None)
    return Plan(apply=apply, delete=delete, status=patch, requeue_after=requeue)


def _workers(pool: Json, context: PoolContext, seen: PoolSeen, secret_uid: str | None) -> _Workers:
    ledger = read_ledger(seen.config_map, status_of(seen.job))
    owner = controller_of(pool)
    name = context.job.name
    if owner is not None and owner.get("kind") == "RLTrainingJob" and owner.get("uid") != context.job.uid:
        return _Workers(
            0, keep=False, pause=no("JobReplaced", f"The RLTrainingJob {name} is another one now.")
        )
    if ledger.outcome is not None:
        return _Workers(0, keep=False, pause=no("JobFinished", f"The RLTrainingJob {name} has ended."))
    if context.job.spec.suspend:
        return _Workers(0, pause=no("JobSuspended", f"The RLTrainingJob {name} is suspended."))
    if context.spec.suspend:
        return _Workers(0, pause=no("Suspended", "spec.suspend is true."))
    if secret_uid is None:
        secret = context.job.redis_secret_name
        return _Workers(0, pause=no("SecretNotFound", f"There is no Secret {secret} with a REDIS_URL yet."))
    if seen.config_map is None:
        return _Workers(0, pause=no("WaitingForJob", f"The RLTrainingJob {name} has no configuration yet."))
    return _bounded(context.spec)


def _bounded(spec: RolloutPoolSpec) -> _Workers:
    """As many as asked for, within the bounds: the scale subresource lets any number through."""
    asked = f"spec.replicas asks for {spec.replicas}"
    if spec.replicas > spec.max_replicas:
        message = f"All workers are ready; {asked}, and maxReplicas is {spec.max_replicas}."
        return _Workers(spec.max_replicas, when_ready=yes("AtMaxReplicas", message))
    if spec.replicas < spec.min_replicas:
        message = f"All workers are ready; {asked}, and minReplicas is {spec.min_replicas}."
        return _Workers(spec.min_replicas, when_ready=yes("AtMinReplicas", message))
    return _Workers(spec.replicas)


def _current(context: PoolContext, seen: PoolSeen, secret_uid: str | None) -> Json | None:
    """The worker Job of the template as it is now."""
    return seen.worker_jobs.get(name_of(worker_job(context, secret_uid or "", 0, None)))


def _seconds_to_wait(current: Json | None, pool_uid: str, now: datetime) -> float:
    """Seconds until a worker Job that ended may be made anew: an image whose process ends at once must not
    cost a Job a second. A Job of another template never waits for this one.
    """
    if current is None or not has_ended(current, pool_uid):
        return 0.0
    created = parse_stamp(meta(current).get("creationTimestamp", ""))
    age = (now - created).total_seconds() if created is not None else LEAST_AGE
    return min(LEAST_AGE, max(0.0, LEAST_AGE - age))


def _children(
    context: PoolContext, seen: PoolSeen, workers: _Workers, secret_uid: str | None, current: Json | None
) -> tuple[tuple[Apply, ...], tuple[Delete, ...]]:
    live = seen.worker_jobs
    if not workers.keep:
        return (), tuple(removals(WORKER_JOB, live.values(), context.uid, "the RLTrainingJob has ended"))
    if workers.replicas == 0 and (not live or secret_uid is None):
        return (), tuple(removals(WORKER_JOB, live.values(), context.uid, "there is nothing to connect to"))
    wanted = worker_job(context, secret_uid or "", workers.replicas, current)
    others = [job for name, job in live.items() if name != name_of(wanted)]
    if current is None and workers.replicas == 0:
        return (), tuple(
            removals(WORKER_JOB, others, context.uid, "the template changed, and no worker is wanted")
        )
    if current is not None and has_ended(current, context.uid):
        why = "a worker ended as if its work were done; an Indexed Job never starts such an index again"
        return (), tuple(removals(WORKER_JOB, live.values(), context.uid, why))
    done = step(stamped(wanted), current, context.uid, ROLLOUT_POOL.kind)
    deletes = [done.delete] if done.delete is not None else []
    if current is not None:
        deletes += removals(WORKER_JOB, others, context.uid, "the template changed")
    return (done.apply,) if done.apply is not None else (), tuple(deletes)


def has_ended(job: Json, pool_uid: str) -> bool:
    """Whether any index of this pool's worker Job is complete, or the whole Job has ended."""
    return is_owned_by(job, pool_uid) and (_is_complete(job) or "Failed" in _true_conditions(job))


def _is_complete(job: Json) -> bool:
    status = status_of(job)
    return bool(
        status.get("completedIndexes") or status.get("succeeded") or "Complete" in _true_conditions(job)
    )


def _true_conditions(job: Json) -> set[object]:
    found = items(status_of(job), "conditions")
    return {condition.get("type") for condition in found if condition.get("status") == "True"}


def exited_early(job: Json | None, pool_uid: str) -> Verdict | None:
    """What is wrong with the image of a worker Job of this pool in which a worker exited with 0."""
    if job is None or not is_owned_by(job, pool_uid) or not _is_complete(job):
        return None
    containers = items(sub(job, "spec", "template", "spec"), "containers")
    image = "".join(found.get("image", "") for found in containers if found.get("name") == CONTAINER)
    return no(
        "WorkerExitedEarly",
        f"A worker of the image {image} exited with 0, as if its work were done. Its process must work until "
        "it gets SIGTERM and exit with 143 then, and with another code than 0 when it can't go on. "
        "All workers of the pool are started anew.",
    )


def configuration_error(pods: tuple[Json, ...]) -> Termination | None:
    """The newest end of a worker that says the job can't work as written."""
    found = [end for end in terminations(pods, CONTAINER) if end.exit_code == ExitCode.CONFIG]
    return found[-1] if found else None


def _ready(seen: PoolSeen, workers: _Workers) -> Verdict:
    if workers.pause is not None:
        return workers.pause
    if seen.refused:
        return no("Refused", seen.refused)
    broken = configuration_error(seen.pods)
    if broken is not None:
        return no(broken.title, broken.sentence)
    if workers.early is not None and workers.replicas:
        return workers.early
    ready = sum(is_ready(pod) for pod in seen.pods)
    if ready >= workers.replicas:
        return workers.when_ready
    return why_not_ready("worker", [pod for pod in alive(seen.pods) if not is_ready(pod)])


def _status(
    pool: Json, spec: RolloutPoolSpec | None, seen: PoolSeen, workers: _Workers, now: datetime
) -> tuple[Json | None, float | None]:
    live = status_of(pool)
    generation = meta(pool).get("generation", 0)
    experience = PoolExperience(steps_per_second=0.0)
    if seen.trainer is not None and seen.job is not None and seen.trainer.uid == uid_of(seen.job):
        experience = seen.trainer.pools.get(name_of(pool), experience)
    verdict = _ready(seen, workers)
    status: Json = RolloutPoolStatus(
        observed_generation=generation,
        replicas=len(alive(seen.pods)),
        wanted=workers.replicas,
        ready=sum(is_ready(pod) for pod in seen.pods),
        restarts=sum(
            seen_container.get("restartCount", 0)
            for pod in seen.pods
            for seen_container in items(status_of(pod), "containerStatuses")
        ),
        steps_per_second=experience.steps_per_second if workers.pause is None else 0.0,
        waiting_fraction=experience.waiting_fraction if workers.pause is None else None,
        selector=_selector_text(pool, spec),
    ).to_wire()
    status["conditions"] = conditions(live.get("conditions"), {"Ready": verdict}, generation, now)
    due = seconds_until_due(seen.progress_written, seen.jobs, now)
    return soft_patch(live, status, due, PROGRESS_FIELDS)


def _selector_text(pool: Json, spec: RolloutPoolSpec | None) -> str:
    """The label selector that the scale subresource hands to autoscalers."""
    if spec is None:
        return ""
    labels = pool_selector(spec.training_job_ref.name, name_of(pool))
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
