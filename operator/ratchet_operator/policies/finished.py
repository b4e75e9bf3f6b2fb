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


def last_word(pods: tuple[Json, ...], uid: str, answer: TrainerStatus | None) -> TrainerStatus | None:
    """How the trainer was when it ended, by its termination message, or its `answer` where that is later:
    it may have finished, or stored a checkpoint, since it was asked. One that failed writes its status in a
    line of its own, before the sentence.
    """
    latest = answer
    for pod in pods:
        for seen in items(status_of(pod), "containerStatuses"):
            for state in ("state", "lastState"):
                ended = sub(seen, state, "terminated")
                message = str(ended.get("message") or "")
                if seen.get("name") != CONTAINER or not message:
                    continue
                try:
                    said = TrainerStatus.model_validate_json(message.partition("\n")[0])
                except ValidationError:
                    continue
                finished = said.state == "Finished"
                if said.uid == uid and finished == (ended.get("exitCode") == 0) and _later(said, latest):
                    latest = said
    return latest


def _later(one: TrainerStatus, other: TrainerStatus | None) -> bool:
    if other is None or (one.state == "Finished") != (other.state == "Finished"):
        return other is None or one.state == "Finished"
    return (one.epoch, one.progress.steps) >= (other.epoch, other.progress.steps)
