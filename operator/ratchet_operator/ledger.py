"""What must be remembered of a job though it can't be observed: attempts, judged failures, the outcome.

It lives as an annotation on the job's ConfigMap, written with a resourceVersion precondition. The job's
status only shows it, so a status that someone wiped or forged comes right again.
"""

import logging
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from ratchet.api.v1alpha1 import RLTrainingJobStatus
from ratchet.api.v1alpha1.base import ApiModel
from ratchet.api.v1alpha1.trainingjob import Checkpoints, Evaluations, Failure, Progress
from ratchet_operator.kinds import Json, annotations_of

log = logging.getLogger("ratchet.ledger")

LEDGER_ANNOTATION = "ratchet.dev/ledger"
REVISION_ANNOTATION = "ratchet.dev/revision-spec"  # of an arm's Deployment: what it was made of
FAILURES_KEPT = 16


class Final(ApiModel):
    """Where training stood when it ended."""

    progress: Progress | None = None
    evaluation: Evaluations | None = None
    checkpoints: Checkpoints | None = None
    active_seconds: int | None = None


class Ledger(ApiModel):
    """The memory of one job.

    Attributes:
        active_since: the moment from which active time counts: the start, moved on by each suspension.
        fallback_epoch: of the newest trainer that had to pass over a broken checkpoint.

    """

    start_time: str | None = None
    active_since: str | None = None
    suspended_at: str | None = None
    completion_time: str | None = None
    attempt: int = 1
    failures: tuple[Failure, ...] = ()
    failures_counted: int = 0
    outcome: Literal["Succeeded", "Failed"] | None = None
    reason: str = ""
    message: str = ""
    suspended: bool = False
    device: Literal["CPU", "GPU"] | None = None
    fell_back: bool = False
    fallback_epoch: int = 0
    final: Final | None = None

    def to_annotation(self) -> str:
        """The JSON that is stored."""
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)


def read_ledger(config_map: Json | None, status: Json) -> Ledger:
    """The ledger from where it is written; from the status where that is gone or damaged; else a new one.
    What a newer release added to either is passed over, so that the way back is open.
    """
    if config_map is not None:
        text = annotations_of(config_map).get(LEDGER_ANNOTATION)
        if text is not None:
            try:
                return Ledger.model_validate_json(text, extra="ignore")
            except ValidationError as error:
                log.warning("a ledger can't be read", extra={"error": str(error)[:500]})
    return _from_status(status)


def _from_status(status: Json) -> Ledger:
    try:
        seen = RLTrainingJobStatus.model_validate(status, extra="ignore")
    except ValidationError:
        return Ledger()
    ledger = Ledger(
        start_time=seen.start_time,
        active_since=seen.start_time,
        attempt=max(1, seen.attempt),
        failures=tuple(seen.failures[-FAILURES_KEPT:]),
        failures_counted=seen.failures_counted,
        device=seen.device,
    )
    for condition in seen.conditions:
        if condition.type in ("Succeeded", "Failed") and condition.status == "True":
            return ledger.model_copy(
                update={
                    "outcome": condition.type,
                    "reason": condition.reason,
                    "message": condition.message,
                    "completion_time": seen.completion_time or condition.last_transition_time,
                    "final": Final(
                        progress=seen.progress,
                        evaluation=seen.evaluation,
                        checkpoints=seen.checkpoints,
                        active_seconds=seen.active_seconds,
                    ),
                }
            )
    return ledger


def stamp(now: datetime) -> str:
    """RFC 3339 in UTC, to the second, as Kubernetes writes it."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_stamp(text: str) -> datetime | None:
    """The inverse of `stamp`; None for what is no time."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
