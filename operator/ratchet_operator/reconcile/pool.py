"""RolloutPool: as many workers as wanted for one RLTrainingJob, in a ReplicaSet."""

from collections.abc import Iterable, Mapping
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
from ratchet_operator.build.workers import CONTAINER, worker_set
from ratchet_operator.conditions import Verdict, conditions, invalid_spec, no, yes
from ratchet_operator.drift import stamped
from ratchet_operator.kinds import (
    JOB_UID_LABEL,
    ROLLOUT_POOL,
    TRAINING_JOB,
    WORKER_SET,
    Json,
    controller_of,
    is_deleting,
    items,
    labels_of,
    meta,
    name_of,
    status_of,
    sub,
    uid_of,
)
from ratchet_operator.ledger import read_ledger
from ratchet_operator.plan import Apply, Delete, Plan
from ratchet_operator.policies.failure import Termination, terminations
from ratchet_operator.policies.progress import seconds_until_due
from ratchet_operator.policies.waiting import alive, image_of, is_ready, why_not_ready
from ratchet_operator.reconcile.children import removals, step
from ratchet_operator.reconcile.patching import soft_patch
from ratchet_operator.settings import Installation
from ratchet_operator.specs import parsed

LOOK_FOR_SECRETS = 5.0  # seconds; Secrets can't be watched
ALL_READY = yes("AllReady", "All workers are ready.")
PROGRESS_FIELDS = ("stepsPerSecond", "waitingFraction", "ready", "replicas", "restarts")


@dataclass(frozen=True, slots=True)
class PoolSeen:
    """Everything that is seen around a pool.

    Attributes:
        job: the RLTrainingJob that the pool names, None where there is none.
        config_map: the job's ConfigMap.
        worker_sets: ReplicaSets by name that the pool's label finds.
        pods: worker pods that the pool's label finds.
        secrets: UID of the Secret with REDIS_URL, None where it is not there.
        trainer: what the job's trainer answered.

    """

    installation: Installation
    job: Json | None = None
    config_map: Json | None = None
    worker_sets: Mapping[str, Json] = field(default_factory=dict[str, Json])
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
        when_ready: what to say once all are ready.

    """

    replicas: int
    pause: Verdict | None = None
    when_ready: Verdict = ALL_READY


def reconcile_pool(pool: Json, seen: PoolSeen, now: datetime) -> Plan:
    """One step towards what the pool's spec asks for."""
    if is_deleting(pool):
        return Plan()
    try:
        spec = parsed(RolloutPoolSpec, pool)
        job_spec = parsed(RLTrainingJobSpec, seen.job) if seen.job is not None else None
    except ValidationError as error:
        return Plan(status=_status(pool, None, seen, _Workers(0, pause=invalid_spec(error)), now)[0])
    uid = uid_of(pool)
    if seen.job is None or job_spec is None or is_deleting(seen.job):
        if (controller_of(pool) or {}).get("kind") == TRAINING_JOB.kind:
            return Plan()  # garbage collection takes the pool, and its workers with it
        pause = no(
            "JobNotFound", f"There is no RLTrainingJob {spec.training_job_ref.name} in this namespace."
        )
        patch, _ = _status(pool, spec, seen, _Workers(0, pause=pause), now)
        why = "its RLTrainingJob is gone"
        return Plan(status=patch, delete=tuple(removals(WORKER_SET, seen.worker_sets.values(), uid, why)))
    context = PoolContext(name_of(pool), uid, spec, JobContext.of(seen.job, job_spec, seen.installation))
    pods = tuple(pod for pod in seen.pods if labels_of(pod).get(JOB_UID_LABEL) == context.job.uid)
    seen = replace(seen, pods=pods)
    secret_uid = seen.secrets.get(context.job.redis_secret_name)
    workers = _workers(pool, context, seen, secret_uid)
    apply, delete = _children(context, seen, workers, secret_uid)
    patch, due = _status(pool, spec, seen, workers, now)
    look = LOOK_FOR_SECRETS if secret_uid is None and not context.job.is_redis_managed else None
    requeue = min((seconds for seconds in (due, look) if seconds), default=None)
    return Plan(apply=apply, delete=delete, status=patch, requeue_after=requeue)


def _workers(pool: Json, context: PoolContext, seen: PoolSeen, secret_uid: str | None) -> _Workers:
    ledger = read_ledger(seen.config_map, status_of(seen.job))
    owner = controller_of(pool)
    name = context.job.name
    if owner is not None and owner.get("kind") == "RLTrainingJob" and owner.get("uid") != context.job.uid:
        return _Workers(0, pause=no("JobReplaced", f"The RLTrainingJob {name} is another one now."))
    if ledger.outcome is not None:
        return _Workers(0, pause=no("JobFinished", f"The RLTrainingJob {name} has ended."))
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


def _children(
    context: PoolContext, seen: PoolSeen, workers: _Workers, secret_uid: str | None
) -> tuple[tuple[Apply, ...], tuple[Delete, ...]]:
    live = seen.worker_sets
    if workers.replicas == 0:
        why = workers.pause.message if workers.pause is not None else "no worker is wanted"
        return (), tuple(removals(WORKER_SET, live.values(), context.uid, why))
    wanted = worker_set(context, secret_uid or "", workers.replicas)
    current = live.get(name_of(wanted))
    done = step(stamped(wanted), current, context.uid, ROLLOUT_POOL.kind)
    deletes = [done.delete] if done.delete is not None else []
    if current is not None:
        others = [found for name, found in live.items() if name != name_of(wanted)]
        deletes += removals(WORKER_SET, others, context.uid, "the template changed")
    return (done.apply,) if done.apply is not None else (), tuple(deletes)


def exited_early(pods: Iterable[Json]) -> Verdict | None:
    """What is wrong with the image of workers whose process ended as if its work were done."""
    for pod in pods:
        for seen in items(status_of(pod), "containerStatuses"):
            ended = sub(seen, "state").get("terminated") or sub(seen, "lastState").get("terminated")
            if seen.get("name") == CONTAINER and ended is not None and ended.get("exitCode") == 0:
                return no(
                    "WorkerExitedEarly",
                    f"A worker of the image {image_of(pod, CONTAINER)} exited with 0, as if its work were "
                    "done. Its process must work until it gets SIGTERM, and exit with another code than 0 "
                    "when it can't go on. It is started again, each time after a longer pause.",
                )
    return None


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
    ready = sum(is_ready(pod) for pod in seen.pods)
    if ready >= workers.replicas:
        return workers.when_ready
    lagging = [pod for pod in alive(seen.pods) if not is_ready(pod)]
    return exited_early(lagging) or why_not_ready("worker", lagging)


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
