"""What the trainer is told by its environment: one frozen object, read once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ratchet.api.v1alpha1 import TrainingConfig
from ratchet.configuration import InvalidConfiguration, read_configuration


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that differs between two trainers.

    Attributes:
        attempt: numbers the tries of a job, by the operator's count.
        tracker: name of an experiment tracker that gets every metric, or None.
        active_since: monotonic time from which the job's active time counts; None where nobody keeps it.
        kept_file: names of the checkpoints that must stay; None where nobody keeps it.

    """

    config: TrainingConfig
    attempt: int
    device: Literal["CPU", "GPU"]
    port: int
    tracker: str | None
    image: str
    active_since: float | None = None
    kept_file: Path | None = None


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises InvalidConfiguration."""
    config = read_configuration(environment)
    attempt, port = environment.get("RATCHET_ATTEMPT", "1"), environment.get("RATCHET_PORT", "8080")
    if not attempt.isdigit() or not port.isdigit():
        raise InvalidConfiguration("RATCHET_ATTEMPT and RATCHET_PORT must be whole numbers")
    return Settings(
        config=config,
        attempt=int(attempt),
        device="GPU" if environment.get("RATCHET_DEVICE") == "GPU" else "CPU",
        port=int(port),
        tracker=environment.get("RATCHET_TRACKER") or None,
        image=environment.get("RATCHET_IMAGE", ""),
        active_since=_on_this_clock(environment.get("RATCHET_ACTIVE_SINCE", "")),
        kept_file=Path(kept) if (kept := environment.get("RATCHET_KEPT")) else None,
    )


def _on_this_clock(stamp: str) -> float | None:
    """An RFC 3339 time as `time.monotonic` would have told it."""
    if not stamp:
        return None
    try:
        passed = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    except (ValueError, TypeError) as error:
        raise InvalidConfiguration("RATCHET_ACTIVE_SINCE must be a time like 2026-01-31T12:00:00Z") from error
    return time.monotonic() - max(0.0, passed)
