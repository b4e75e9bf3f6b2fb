"""Prometheus series of the objects that are served: pure functions of their specs and statuses.

A series lives as long as its object and is there again after a restart, since nothing is counted here.
What the process itself does is counted in `metrics`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from ratchet.api.v1alpha1 import RLTrainingJobStatus
from ratchet.api.v1alpha1.base import seconds
from ratchet.api.v1alpha1.common import Condition
from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentStatus, Strategy, Trial
from ratchet_operator.cache import Cache
from ratchet_operator.kinds import (
    POLICY_DEPLOYMENT,
    TRAINING_JOB,
    Json,
    Kind,
    name_of,
    namespace_of,
    status_of,
    sub,
)
from ratchet_operator.ledger import parse_stamp

USUAL_DEADLINE: str = Strategy.model_fields["progress_deadline"].default
PHASES = ("None", *get_args(Trial.model_fields["phase"].annotation))
SHORT = 12  # characters of a digest, as the policy servers' own metrics have it


@dataclass(frozen=True, slots=True)
class Family:
    """A metric; its series also have the labels namespace and name, of the object."""

    name: str
    words: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


Series = Iterator[tuple[Family, tuple[str, ...], float]]

_CONDITION = ("condition", "status", "reason")
JOB_CONDITION = Family("ratchet_job_condition", "1 for each condition of a training job.", _CONDITION)
JOB_STARTED = Family("ratchet_job_start_timestamp_seconds", "When training began.")
JOB_STEPS = Family("ratchet_job_steps_total", "Environment steps, each counted once.", kind="counter")
JOB_FAILURES = Family("ratchet_job_failures_total", "Failures that began another attempt.", kind="counter")
JOB_WORKERS = Family("ratchet_job_workers", "Rollout workers, wanted and ready.", ("state",))
JOB_CHECKPOINT = Family(
    "ratchet_job_checkpoint_timestamp_seconds",
    "When the latest and the best were stored.",
    ("which",),
)

CONDITION = Family("ratchet_rollout_condition", "1 for each condition of a PolicyDeployment.", _CONDITION)
ARM = Family("ratchet_rollout_arm_info", "1 for each arm that there is.", ("arm", "digest", "revision"))
WEIGHT = Family("ratchet_rollout_weight_ratio", "Share of new episodes, as observed at the pods.", ("arm",))
PODS = Family("ratchet_rollout_pods", "Pods of an arm: alive, and of these ready.", ("arm", "state"))
PHASE = Family("ratchet_rollout_phase", "1 for the phase of the trial, None without one.", ("phase",))
STAGE = Family("ratchet_rollout_stage", "Stage of the trial, counted from 0.")
PHASE_BEGAN = Family(
    "ratchet_rollout_phase_start_timestamp_seconds", "When the phase, or the stage at its weight, began."
)
DEADLINE = Family("ratchet_rollout_progress_deadline_seconds", "For each phase to get what it waits for.")
VERDICT = Family("ratchet_rollout_guard_verdict", "1 for the verdict of each guard.", ("guard", "verdict"))
ODDS = Family("ratchet_rollout_guard_odds", "Evidence against a guard's bound.", ("guard",))
NEEDED = Family("ratchet_rollout_guard_odds_needed", "Odds at which a guard fails.", ("guard",))
SAMPLES = Family("ratchet_rollout_guard_samples", "Samples that a guard has judged.", ("guard", "arm"))
ENDED = Family("ratchet_rollout_ended_timestamp_seconds", "When a trial last ended so.", ("outcome",))
QUARANTINED = Family("ratchet_rollout_quarantined", "Policies that are not tried again.")

JOB_FAMILIES = (JOB_CONDITION, JOB_STARTED, JOB_STEPS, JOB_FAILURES, JOB_WORKERS, JOB_CHECKPOINT)
ROLLOUT_FAMILIES = (
    CONDITION, ARM, WEIGHT, PODS, PHASE, STAGE, PHASE_BEGAN, DEADLINE,
    VERDICT, ODDS, NEEDED, SAMPLES, ENDED, QUARANTINED,
)  # fmt: skip
FAMILIES = (*JOB_FAMILIES, *ROLLOUT_FAMILIES)


def job_series(job: Json) -> Series:
    """What an RLTrainingJob's status says.

    Raises:
        ValidationError: it can't be read.

    """
    status = RLTrainingJobStatus.model_validate(status_of(job))
    yield from _conditions(JOB_CONDITION, status.conditions)
    yield from _time(JOB_STARTED, (), status.start_time)
    if status.progress is not None:
        yield JOB_STEPS, (), status.progress.steps
    yield JOB_FAILURES, (), status.failures_counted
    if status.workers is not None:
        yield JOB_WORKERS, ("wanted",), status.workers.wanted
        yield JOB_WORKERS, ("ready",), status.workers.ready
    if status.checkpoints is not None:
        for which, found in (("latest", status.checkpoints.latest), ("best", status.checkpoints.best)):
            if found is not None:
                yield from _time(JOB_CHECKPOINT, (which,), found.time)


def rollout_series(deployment: Json) -> Series:
    """What a PolicyDeployment's spec and status say.

    Raises:
        ValidationError: the status can't be read.

    """
    status = PolicyDeploymentStatus.model_validate(status_of(deployment))
    yield DEADLINE, (), seconds(sub(deployment, "spec", "strategy").get("progressDeadline", USUAL_DEADLINE))
    yield from _conditions(CONDITION, status.conditions)
    for name, arm in (("stable", status.stable), ("canary", status.canary)):
        if arm is not None:
            yield ARM, (name, arm.digest.removeprefix("sha256:")[:SHORT], arm.revision), 1
            yield WEIGHT, (name,), arm.weight / 100
            yield PODS, (name, "alive"), arm.replicas
            yield PODS, (name, "ready"), arm.ready
    trial = status.trial
    for phase in PHASES:
        yield PHASE, (phase,), phase == (trial.phase if trial is not None else "None")
    if trial is not None:
        yield STAGE, (), trial.stage
        yield from _time(PHASE_BEGAN, (), trial.since)
        for decision in {decision.guard: decision for decision in status.decisions}.values():
            guard = decision.guard
            yield VERDICT, (guard, decision.verdict), 1
            if decision.odds is not None:
                yield ODDS, (guard,), decision.odds
            if decision.needed is not None:
                yield NEEDED, (guard,), decision.needed
            yield SAMPLES, (guard, "canary"), decision.canary_samples
            yield SAMPLES, (guard, "stable"), decision.stable_samples
    for outcome, ended in {past.outcome: past.time for past in status.history}.items():
        yield from _time(ENDED, (outcome,), ended)
    yield QUARANTINED, (), len(status.quarantined)


def _conditions(family: Family, found: list[Condition]) -> Series:
    for condition in found:
        yield family, (condition.type, condition.status, condition.reason), 1


def _time(family: Family, labels: tuple[str, ...], stamp: str | None) -> Series:
    when = parse_stamp(stamp) if stamp is not None else None
    if when is not None:
        yield family, labels, when.timestamp()


_READERS: Mapping[Kind, Callable[[Json], Series]] = {
    TRAINING_JOB: job_series,
    POLICY_DEPLOYMENT: rollout_series,
}


class ObjectSeries(Collector):
    """The series of all objects in the caches; may be collected on another thread."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """Every family, also where no object has a series of it."""
        made = {
            family.name: _TYPES[family.kind](
                family.name, family.words, labels=("namespace", "name", *family.labels)
            )
            for family in FAMILIES
        }
        for kind, read in _READERS.items():
            if kind not in self._cache:
                continue
            for obj in self._cache[kind]:
                whose = namespace_of(obj), name_of(obj)
                try:
                    series = list(read(obj))
                except ValidationError:
                    continue  # its conditions say what can't be read
                for family, labels, value in series:
                    made[family.name].add_metric((*whose, *labels), value)
        yield from made.values()


_TYPES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
