"""RLTrainingJob: what its children should be, what its status should say, when it has ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic import ValidationError

from ratchet.api.v1alpha1 import RLTrainingJobSpec, TrainerStatus
from ratchet_operator.build.config import config_map
from ratchet_operator.build.context import JobContext
from ratchet_operator.build.network import network_policies
from ratchet_operator.build.pool import rollout_pool
from ratchet_operator.build.redis import redis_deployment, redis_service
from ratchet_operator.build.trainer import ACTIVE_SINCE, trainer_deployment
from ratchet_operator.conditions import conditions, invalid_spec
from ratchet_operator.drift import stamped
from ratchet_operator.kinds import (
    DEPLOYMENT,
    JOB_UID_LABEL,
    NETWORK_POLICY,
    ROLLOUT_POOL,
    SERVICE,
    TRAINING_JOB,
    Json,
    is_deleting,
    is_owned_by,
    labels_of,
    name_of,
    spec_of,
    status_of,
)
from ratchet_operator.ledger import Ledger, read_ledger
from ratchet_operator.plan import Apply, CreateRedisSecret, Delete, Occurrence, Plan
from ratchet_operator.policies.device import DeviceChoice, choose_device
from ratchet_operator.policies.finished import (
    last_word,
    seconds_to_deadline,
    seconds_to_live,
)
from ratchet_operator.policies.waiting import alive
from ratchet_operator.reconcile.children import ChildStep, removal, removals, resource_version, step
from ratchet_operator.reconcile.history import (
    advance,
    component_pods,
    live_attempt,
    live_device,
    live_environment,
)
from ratchet_operator.reconcile.jobstatus import Waiting, job_status, status_patch
from ratchet_operator.settings import Installation
from ratchet_operator.specs import parsed

LOOK_FOR_SECRETS = 5.0  # seconds; Secrets can't be watched
LOOK_FOR_ANSWERS = 1.0  # past its deadline a job only waits for the first round of asking trainers


@dataclass(frozen=True, slots=True)
class JobSeen:
    """Everything that is seen around a job.

    Attributes:
        deployments, services, network_policies: by name, in the job's namespace.
        secrets: UID of each Secret that was looked for, None where it is not there.
        devices: the largest number of each device on any one node; None where nodes can't be seen.
        trainer: what the trainer answered; None where it can't be asked.
        trainers_asked: whether every trainer was asked since this operator leads.
        refused: what the API server said about a child that it would not take.
        progress_written: when this operator last wrote this job's progress.
        jobs: how many jobs this operator serves.
        kept: names of its checkpoints that servers may be started from, sorted.

    """

    installation: Installation
    config_map: Json | None = None
    deployments: Mapping[str, Json] = field(default_factory=dict[str, Json])
    services: Mapping[str, Json] = field(default_factory=dict[str, Json])
    network_policies: Mapping[str, Json] = field(default_factory=dict[str, Json])
    pool: Json | None = None
    pods: tuple[Json, ...] = ()
    secrets: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    devices: Mapping[str, int] | None = None
    trainer: TrainerStatus | None = None
    trainers_asked: bool = True
    refused: str | None = None
    progress_written: datetime | None = None
    jobs: int = 1
    kept: tuple[str, ...] = ()


def reconcile_job(job: Json, seen: JobSeen, now: datetime) -> Plan:
    """One step towards what the job's spec asks for."""
    if is_deleting(job):
        return Plan()
    try:
        spec = parsed(RLTrainingJobSpec, job)
    except ValidationError as error:
        return _invalid(job, error, now)
    context = JobContext.of(job, spec, seen.installation)
    pods = tuple(pod for pod in seen.pods if labels_of(pod).get(JOB_UID_LABEL) == context.uid)
    trainer = seen.trainer if seen.trainer is not None and seen.trainer.uid == context.uid else None
    trainer = last_word(component_pods(pods, "trainer"), context.uid, trainer)
    mine = replace(seen, trainer=trainer, config_map=_mine(seen.config_map, context.uid), pods=pods)

    live_trainer = _mine(mine.deployments.get(context.trainer_name), context.uid)
    before = read_ledger(mine.config_map, status_of(job))
    children = [mine.pool, *mine.deployments.values(), *mine.services.values()]
    if mine.config_map is None and any(_mine(child, context.uid) for child in children):
        # Only the status could say that it has ended, and children live: whoever wrote that was not us.
        before = before.model_copy(update={"outcome": None, "completion_time": None, "final": None})
    since = live_environment(live_trainer, ACTIVE_SINCE) if mine.config_map is None else None
    before = before.model_copy(
        update={
            "attempt": max(before.attempt, live_attempt(live_trainer)),
            "active_since": since or before.active_since,
        }
    )
    # A trainer that has found no node has not started, and its device can still be chosen.
    trainers = alive(component_pods(pods, "trainer"))
    running_on = live_device(live_trainer) if any(spec_of(pod).get("nodeName") for pod in trainers) else None
    choice = choose_device(spec.trainer.gpu, mine.devices, running_on)
    asked = seen.trainers_asked
    after, occurrences = advance(before, context, mine.pods, trainer, choice, status_of(job), now, asked)
    if after.outcome is not None:
        return _ended(job, context, mine, after, occurrences, now)
    return _going_on(job, context, mine, after, occurrences, choice, now)


def _mine(live: Json | None, uid: str) -> Json | None:
    return live if live is not None and is_owned_by(live, uid) else None


def _going_on(
    job: Json,
    context: JobContext,
    seen: JobSeen,
    ledger: Ledger,
    occurrences: tuple[Occurrence, ...],
    choice: DeviceChoice,
    now: datetime,
) -> Plan:
    secret_uid = seen.secrets.get(context.redis_secret_name)
    steps = [
        _step(wanted, live, context) for wanted, live in _wanted(context, seen, ledger, choice, secret_uid)
    ]
    secrets: tuple[CreateRedisSecret, ...] = ()
    if context.is_redis_managed and secret_uid is None:
        secrets = (
            CreateRedisSecret(
                context.namespace, context.redis_name, context.uid, context.redis_name,
                context.labels("redis"), context.owner,
            ),
        )  # fmt: skip
    deletes = [done.delete for done in steps if done.delete is not None]
    others = [service for name, service in seen.services.items() if name != context.redis_name]
    deletes += removals(SERVICE, others, context.uid, "an earlier release made it")
    if not context.is_redis_managed:
        deletes += _redis_removals(context, seen)
    deletes += _policy_removals(context, seen)
    taken = [done.taken for done in steps if done.taken is not None]
    waiting = Waiting(
        taken=", ".join(taken),
        refused=seen.refused or "",
        missing_secrets=tuple(name for name in user_secrets(context) if seen.secrets.get(name, "") is None),
    )
    wanted_status, due = job_status(job, context, seen, ledger, choice, waiting, now)
    patch, requeue = status_patch(job, wanted_status, due)
    deadline = seconds_to_deadline(ledger, context.spec.stop, now)
    looks = (
        requeue,
        LOOK_FOR_SECRETS if waiting.missing_secrets else None,
        LOOK_FOR_ANSWERS if deadline == 0 else deadline,
    )
    return Plan(
        secrets=secrets,
        apply=tuple(done.apply for done in steps if done.apply is not None),
        status=patch,
        occurrences=occurrences,
        delete=tuple(deletes),
        requeue_after=min((look for look in looks if look is not None), default=None),
    )


def user_secrets(context: JobContext) -> list[str]:
    """Secrets that must be there and that the operator does not make."""
    s3 = context.spec.checkpoint.s3.secret_ref
    names = [s3.name] if s3 is not None else []
    return names if context.is_redis_managed else [*names, context.redis_secret_name]


def _wanted(
    context: JobContext, seen: JobSeen, ledger: Ledger, choice: DeviceChoice, secret_uid: str | None
) -> list[tuple[Json, Json | None]]:
    active = 0 if context.spec.suspend else 1
    trainer_replicas = active if choice.may_start else 0
    wanted: list[tuple[Json, Json | None]] = [(config_map(context, ledger, seen.kept), seen.config_map)]
    if context.is_redis_managed:
        wanted.append((redis_service(context), seen.services.get(context.redis_name)))
        if secret_uid is not None:
            live = seen.deployments.get(context.redis_name)
            wanted.append((redis_deployment(context, secret_uid, active), live))
    if secret_uid is not None:
        live = seen.deployments.get(context.trainer_name)
        device = choice.device
        wanted.append((trainer_deployment(context, ledger, device, secret_uid, trainer_replicas), live))
    wanted.append((rollout_pool(context, _mine(seen.pool, context.uid)), seen.pool))
    if context.installation.network_policies:
        wanted += [
            (policy, seen.network_policies.get(name_of(policy))) for policy in network_policies(context)
        ]
    return wanted


def _step(wanted: Json, live: Json | None, context: JobContext) -> ChildStep:
    ignoring: tuple[tuple[str, ...], ...] = ()
    if wanted["kind"] == ROLLOUT_POOL.kind:
        ignoring = (("spec", "replicas"),)
    done = step(stamped(wanted, ignoring), live, context.uid, TRAINING_JOB.kind)
    if done.apply is not None and wanted["kind"] == "ConfigMap" and live is not None:
        return ChildStep(apply=replace(done.apply, version=resource_version(live)))
    return done


def _redis_removals(context: JobContext, seen: JobSeen) -> list[Delete]:
    why = "the job brings its own Redis"
    name = context.redis_name
    return [
        *removals(DEPLOYMENT, [seen.deployments.get(name)], context.uid, why),
        *removals(SERVICE, [seen.services.get(name)], context.uid, why),
    ]


def _policy_removals(context: JobContext, seen: JobSeen) -> list[Delete]:
    if context.installation.network_policies:
        return []
    return removals(NETWORK_POLICY, seen.network_policies.values(), context.uid, "network policies are off")


def _ended(
    job: Json,
    context: JobContext,
    seen: JobSeen,
    ledger: Ledger,
    occurrences: tuple[Occurrence, ...],
    now: datetime,
) -> Plan:
    """Keep the ConfigMap with its ledger and the Redis password; everything else goes."""
    ttl = seconds_to_live(ledger, context.spec.ttl_seconds_after_finished, now)
    if ttl == 0 and not occurrences:
        return Plan(delete=(removal(TRAINING_JOB, job, "ttlSecondsAfterFinished has passed"),))
    kept = _step(config_map(context, ledger, seen.kept), seen.config_map, context)
    why = f"the job has {ledger.outcome.lower() if ledger.outcome else 'ended'}"
    deletes = [
        *removals(DEPLOYMENT, seen.deployments.values(), context.uid, why),
        *removals(ROLLOUT_POOL, [seen.pool], context.uid, why),
        *removals(SERVICE, seen.services.values(), context.uid, why),
        *removals(NETWORK_POLICY, seen.network_policies.values(), context.uid, why),
    ]
    choice = DeviceChoice(ledger.device or "CPU", may_start=False, verdict=None)
    wanted_status, _ = job_status(job, context, seen, ledger, choice, Waiting(), now)
    patch, _ = status_patch(job, wanted_status, 0.0)
    apply: tuple[Apply, ...] = (kept.apply,) if kept.apply is not None else ()
    return Plan(apply=apply, status=patch, occurrences=occurrences, delete=tuple(deletes), requeue_after=ttl)


def _invalid(job: Json, error: ValidationError, now: datetime) -> Plan:
    """A spec that the installed CRD let through and this operator can't read: say so, touch nothing."""
    wanted: Json = {**status_of(job)}
    generation = job["metadata"].get("generation", 0)
    verdicts = {"Progressing": invalid_spec(error)}
    wanted["conditions"] = conditions(wanted.get("conditions"), verdicts, generation, now)
    wanted["observedGeneration"] = generation
    patch, _ = status_patch(job, wanted, 0.0)
    return Plan(status=patch)
