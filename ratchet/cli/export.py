"""From a job, a checkpoint or a folder to a folder that a policy server takes: `ratchet export`.

What reads policies is imported when it is needed: the rest of the command does without numpy.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ratchet.cli.cluster import Resource
from ratchet.cli.outcome import CommandError, Exit
from ratchet.cli.words import value

if TYPE_CHECKING:
    from ratchet.policies.artifact import Artifact

Which = Literal["best", "latest"]
Weights = Literal["float32", "bfloat16", "int8"]


def of_job(job: Resource, which: Which) -> tuple[str, str, str | None, str | None]:
    """URI and digest of a job's checkpoint, endpoint and region of its bucket.

    Raises:
        CommandError: the job has none yet.

    """
    found = value(job, f"status.checkpoints.{which}")
    if not found:
        name = value(job, "metadata.name")
        raise CommandError(f"{name} has no {which} checkpoint yet: see `ratchet checkpoints {name}`")
    s3: dict[str, Any] = value(job, "spec.checkpoint.s3") or {}
    return str(found["uri"]), str(found["digest"]), s3.get("endpoint"), s3.get("region")


def export(
    source: str, digest: str | None, folder: Path, weights: Weights, endpoint: str | None, region: str | None
) -> "Artifact":
    """Reads, verifies and writes a policy.

    Args:
        source: as `ratchet.policies.sources.read_source` takes it.
        digest: that it must have.
        folder: for the three files.
        weights: number format.
        endpoint: of the bucket; default that of AWS's variables, or AWS.
        region: of the bucket.

    Raises:
        CommandError: something is wrong with the source, the format or the folder.

    """
    try:
        from ratchet.policies.artifact import convert, write_folder
        from ratchet.policies.errors import ArtifactError, ArtifactUnavailable
        from ratchet.policies.sources import Server, read_source
    except ImportError as error:
        raise CommandError(
            f"export needs {error.name}: pip install 'ratchet-rl[cli,data]'", Exit.USAGE
        ) from error
    known = Server.from_environment(os.environ)
    server = Server(endpoint or known.endpoint, region or known.region)
    try:
        artifact = convert(read_source(source, digest and digest.removeprefix("sha256:"), server), weights)
        write_folder(artifact, folder)
    except ArtifactUnavailable as error:
        raise CommandError(str(error), Exit.UNAVAILABLE) from error
    except ArtifactError as error:
        raise CommandError(str(error)) from error
    return artifact
