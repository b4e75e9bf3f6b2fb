"""The file that tells trainer and workers what the job is."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from ratchet.api.v1alpha1 import TrainingConfig

VARIABLE = "RATCHET_CONFIG"


class InvalidConfiguration(Exception):  # noqa: N818 - names what was found
    """The job can't work as it is written; the sentence says what to write instead."""


def read_configuration(environment: Mapping[str, str]) -> TrainingConfig:
    """What the file says that RATCHET_CONFIG names.

    Raises:
        InvalidConfiguration: it can't be read, or holds no job.

    """
    path = Path(environment.get(VARIABLE, "/etc/ratchet/job.json"))
    try:
        return TrainingConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidConfiguration(f"{path} can't be read ({error.strerror}): set {VARIABLE}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its root"
        raise InvalidConfiguration(f"{path} is wrong at {where}: {first['msg']}") from error
