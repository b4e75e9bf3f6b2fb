"""Whether the job has ended, and when what is left of it may go."""

from datetime import datetime, timedelta

from pydantic import ValidationError

from ratchet.api.v1alpha1 import TrainerStatus, seconds
from ratchet.api.v1alpha1.training import Stop
from ratchet_operator.build.trainer import CONTAINER
from ratchet_operator.kinds import Json, items, status_of, sub
from ratchet_operator.ledger import Ledger, parse_stamp

GRACE_SECONDS = 120.0  # in which a trainer that is past `maxDuration` evaluates, and stores what it has


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


def seconds_to_deadline(ledger: Ledger, stop: Stop, now: datetime) -> float | None:
    """Seconds until a job is ended that should have ended by `maxDuration`; None while no such time runs."""
    if stop.max_duration is None or ledger.suspended or ledger.active_since is None:
        return None
    since = parse_stamp(ledger.active_since)
    if since is None:
        return None
    return max(0.0, seconds(stop.max_duration) + GRACE_SECONDS - (now - since).total_seconds())


def last_word(pods: tuple[Json, ...], uid: str) -> TrainerStatus | None:
    """What a finished trainer left in its termination message: it counts where it could not be asked."""
    for pod in pods:
        for seen in items(status_of(pod), "containerStatuses"):
            for state in ("state", "lastState"):
                ended = sub(seen, state, "terminated")
                if seen.get("name") != CONTAINER or ended.get("exitCode") != 0:
                    continue
                try:
                    said = TrainerStatus.model_validate_json(ended.get("message", ""))
                except ValidationError:
                    continue
                if said.uid == uid and said.state == "Finished":
                    return said
    return None
