"""Where a policy lies: a folder, a prefix of a bucket, or a checkpoint in one. Nothing is kept here.

boto3 is imported only for what lies in a bucket.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ratchet.policies.artifact import DESCRIPTION, WEIGHTS, Artifact, read, read_folder
from ratchet.policies.errors import (
    ArtifactCorrupt,
    ArtifactDenied,
    ArtifactError,
    ArtifactMissing,
    ArtifactUnavailable,
    ArtifactUnsupported,
)

_S3 = re.compile(r"^s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>.+?)/?$")
_MANIFEST = re.compile(r"^(?P<prefix>.+)/(?P<manifest>manifests/[^/]+\.json)$")

REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Server:
    """Of which a bucket is: AWS, or the endpoint of another.

    Credentials come from the folder that RATCHET_S3_CREDENTIALS_DIR names, else by boto3's own chain.
    """

    endpoint: str | None = None
    region: str = REGION

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Server":
        """By the variables of AWS's own tools: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_REGION."""
        endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        return cls(endpoint or None, region or REGION)


def in_bucket(source: str) -> bool:
    """It is no folder."""
    return source.startswith("s3://")


def read_source(source: str, digest: str | None = None, server: Server | None = None) -> Artifact:
    """Reads and verifies the policy at a place.

    Args:
        source: a folder, `s3://bucket/prefix` of the three files, or `s3://bucket/…/manifests/<name>.json` of
            a checkpoint, as a job's status gives it.
        digest: of the policy, or of the checkpoint's manifest; None takes what is there.
        server: of the bucket; default AWS.

    Raises:
        ArtifactError: any of its family.

    """
    if not in_bucket(source):
        return read_folder(Path(source.removeprefix("file://")), digest)
    from ratchet.api.v1alpha1.training import S3
    from ratchet.checkpoints import CheckpointStore, connect
    from ratchet.checkpoints.errors import CheckpointError, StorageDenied

    place = _S3.match(source)
    if place is None:
        raise ArtifactError(f"{source} is not s3://bucket/prefix with the name of a bucket")
    server = server or Server()
    s3 = S3(bucket=place["bucket"], endpoint=server.endpoint, region=server.region)
    checkpoint = _MANIFEST.match(place["key"])
    prefix = checkpoint["prefix"] if checkpoint else place["key"]
    try:
        store = CheckpointStore(connect(s3), s3, prefix)
        if checkpoint is None:
            return read(_files(store.get_file, source), digest)
        return _read_checkpoint(_files(store.get_file, source), checkpoint["manifest"], digest)
    except CheckpointError as error:
        # A policy is had without a TrainingJob too, whose field the words name.
        why = str(error).replace("checkpoint.s3.", "s3.")
        kind = ArtifactDenied if isinstance(error, StorageDenied) else ArtifactUnavailable
        raise kind(f"{source} can't be had: {why}") from error


def _files(get: Callable[[str], bytes | None], source: str) -> Callable[[str], bytes]:
    def fetch(name: str) -> bytes:
        content = get(name)
        if content is None:
            raise ArtifactMissing(f"{source} has no {name}: it was never written, or has been removed")
        return content

    return fetch


def _read_checkpoint(fetch: Callable[[str], bytes], name: str, digest: str | None) -> Artifact:
    from pydantic import ValidationError

    from ratchet.checkpoints import Manifest

    text = fetch(name)
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactCorrupt(f"{name} is no manifest of a checkpoint") from error
    if WEIGHTS not in manifest.blobs or DESCRIPTION not in manifest.blobs:
        raise ArtifactUnsupported(f"{name} was written by a trainer that did not export its policy")
    own, policy = hashlib.sha256(text).hexdigest(), manifest.blobs[DESCRIPTION].sha256
    if digest not in (None, own, policy):
        raise ArtifactCorrupt(f"{name} has the digest {own}, and its policy {policy}: neither is {digest}")

    def blob(file: str) -> bytes:
        if file not in manifest.blobs:
            raise ArtifactCorrupt(f"{name} does not name {file}")
        return fetch(f"blobs/sha256/{manifest.blobs[file].sha256}")

    return read(blob, policy)
