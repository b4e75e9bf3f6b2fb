"""What the trainer is told by its environment: one frozen object, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ratchet.api.v1alpha1 import TrainingConfig


class InvalidConfiguration(Exception):  # noqa: N818 - names what was found
    """The job can't work as it is written; the sentence says what to write instead."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that differs between two trainers.

    Attributes:
        attempt: numbers the tries of a job, by the operator's count.
        tracker: name of an experiment tracker that gets every metric, or None.

    """

    config: TrainingConfig
    attempt: int
    device: Literal["CPU", "GPU"]
    port: int
    tracker: str | None
    image: str


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises InvalidConfiguration."""
    path = Path(environment.get("RATCHET_CONFIG", "/etc/ratchet/job.json"))
    try:
        config = TrainingConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidConfiguration(f"{path} can't be read ({error.strerror}): set RATCHET_CONFIG") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its root"
        raise InvalidConfiguration(f"{path} is wrong at {where}: {first['msg']}") from error
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
    )
