"""Whether the job has ended, and when what is left of it may go."""

from datetime import datetime, timedelta

from ratchet.api.v1alpha1 import TrainerStatus
from ratchet_operator.ledger import Ledger, parse_stamp


def finished_reason(trainer: TrainerStatus | None) -> str | None:
    """The stop rule that the trainer says was met."""
    if trainer is None or trainer.state != "Finished":
        return None
    return trainer.finished_reason or "Finished"


def seconds_to_live(ledger: Ledger, ttl: int | None, now: datetime) -> float | None:
    """Seconds until a finished job is deleted, 0 when it is due; None when it stays."""
    if ttl is None or ledger.outcome is None or ledger.completion_time is None:
        return None
    completed = parse_stamp(ledger.completion_time)
    if completed is None:
        return None
    return max(0.0, (completed + timedelta(seconds=ttl) - now).total_seconds())
