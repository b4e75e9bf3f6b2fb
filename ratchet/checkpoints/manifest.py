"""The manifest: one small JSON object that is a checkpoint, since nothing counts before it is there."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

SCHEMA_VERSION = 1
_NAME = re.compile(r"^(?P<steps>\d{12,})-(?P<epoch>\d+)-(?P<version>\d+)$")


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Blob(_Model):
    """A part of a checkpoint, stored under its own hash."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Lineage(_Model):
    """Where a checkpoint comes from.

    Attributes:
        parent: digest of the manifest that this run of the trainer went on from.
        config: SHA-256 of the trainer's configuration.
        image: of the trainer, as the installation names it.

    """

    namespace: str
    job: str
    uid: str
    attempt: int
    parent: str | None = None
    config: str = ""
    image: str = ""
    versions: dict[str, str] = {}


class Manifest(_Model):
    """Names every blob of a checkpoint with its size and hash."""

    schema_version: int = SCHEMA_VERSION
    steps: int = Field(ge=0)
    epoch: int = Field(ge=1)
    version: int = Field(ge=0)
    time: str
    final: bool = False
    mean_return: float | None = None
    blobs: dict[str, Blob]
    metrics: dict[str, Any] = {}
    lineage: Lineage

    @property
    def name(self) -> str:
        """Sorts by steps."""
        return checkpoint_name(self.steps, self.epoch, self.version)

    def to_bytes(self) -> bytes:
        """What is stored; its SHA-256 is the checkpoint's digest."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()


def checkpoint_name(steps: int, epoch: int, version: int) -> str:
    """Of a checkpoint's manifest."""
    return f"{steps:012d}-{epoch}-{version}"


def order(name: str) -> tuple[int, int, int] | None:
    """(epoch, version, steps) of a manifest's name, newest line of training last; None for what is none."""
    found = _NAME.match(name)
    if found is None:
        return None
    return int(found["epoch"]), int(found["version"]), int(found["steps"])
