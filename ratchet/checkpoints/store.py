"""Reading and writing checkpoints. Layout and promises are in docs/data-plane.md.

A checkpoint is written blobs first, manifest last, so a crash at any point leaves the one before. It is read
newest first, each blob verified; what is broken is passed over and reported. Here everything is bytes; the
caller loads nothing but safetensors and JSON.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from pydantic import ValidationError

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints.errors import CheckpointsUnreadable, StorageDenied, StorageUnavailable, Superseded
from ratchet.checkpoints.manifest import Blob, Manifest, order
from ratchet.checkpoints.retention import Candidate, removable

CREDENTIALS_FOLDER = "RATCHET_S3_CREDENTIALS_DIR"
# A blob that no manifest names may belong to a checkpoint that is being written.
GARBAGE_AGE = timedelta(hours=1)
# Of the answers that blame the request, those that may be others next time.
PASSING = frozenset({408, 409, 425, 429})
_T = TypeVar("_T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest as it lies in the bucket."""

    manifest: Manifest
    digest: str
    uri: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The newest whole checkpoint.

    Attributes:
        blobs: verified content by name.
        passed_over: newer checkpoints that are broken: a sentence for each.

    """

    stored: Stored
    blobs: dict[str, bytes]
    passed_over: tuple[str, ...]


def connect(s3: S3) -> Any:
    """A boto3 client for a bucket's server.

    Credentials are read from files in the folder that RATCHET_S3_CREDENTIALS_DIR names (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN if there is one), else by boto3's own chain.

    Raises:
        StorageDenied: the folder is named and a file is missing or empty.

    """
    credentials: dict[str, str] = {}
    folder = os.environ.get(CREDENTIALS_FOLDER)
    if folder:
        for argument, name, needed in (
            ("aws_access_key_id", "AWS_ACCESS_KEY_ID", True),
            ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", True),
            ("aws_session_token", "AWS_SESSION_TOKEN", False),
        ):
            file = Path(folder) / name
            value = file.read_text().strip() if file.is_file() else ""
            if value:
                credentials[argument] = value
            elif needed:
                raise StorageDenied(f"the Secret of checkpoint.s3.secretRef has no key {name}: add it")
    library: Any = boto3
    make = library.client
    return make(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        config=Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"total_max_attempts": 4, "mode": "standard"},
            # Servers other than AWS rarely have a host name for each bucket.
            s3={"addressing_style": "path" if s3.endpoint else "auto"},
            # AWS's newer default checksums are refused by some servers; the SHA-256 in the manifest is ours.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
        **credentials,
    )


class CheckpointStore:
    """The checkpoints of one job.

    Args:
        client: of boto3, as `connect` makes it.
        s3: where.
        prefix: of every key, without a slash at its end.

    Who writes holds an epoch, and no other writes under it. Every method raises StorageDenied or
    StorageUnavailable.

    """

    def __init__(self, client: Any, s3: S3, prefix: str) -> None:
        self._client = client
        self._s3 = s3
        self._prefix = prefix
        self._name = secrets.token_hex(8)
        self._claimed = 0

    def claims(self) -> list[tuple[int, str]]:
        """Epoch, and name of the store that claimed it, lowest first."""
        found: list[tuple[int, str]] = []
        for entry in self._list("epochs/"):
            epoch, _, name = entry["Key"].rpartition("/")[2].partition("-")
            if epoch.isdecimal():
                found.append((int(epoch), name))
        return sorted(found)

    def claim(self, epoch: int) -> None:
        """From now on no store writes under a lower epoch, nor another under this one.

        Of two that claim the same at the same time none gets it: each lists after it has written. This asks
        nothing of the server but consistent lists.

        Raises:
            Superseded: another has claimed this epoch or a higher one.

        """
        self._refuse_if_superseded(epoch)
        if epoch == self._claimed:
            return
        self._put(self._claim_key(epoch, self._name), b"")
        lower = [claim for claim in self._refuse_if_superseded(epoch) if claim[0] < epoch]
        self._claimed = epoch
        self._delete(self._claim_key(*claim) for claim in lower)

    def names(self) -> list[str]:
        """Names of all manifests, oldest line of training first."""
        return [name for name, _ in self._manifests()]

    def write(self, manifest: Callable[[dict[str, Blob]], Manifest], blobs: Mapping[str, bytes]) -> Stored:
        """Stores blobs, then the manifest that `manifest` makes of their hashes.

        Raises:
            Superseded: as `claim`; an epoch that is not claimed yet is.

        """
        hashes = {name: Blob(sha256=_sha256(content), size=len(content)) for name, content in blobs.items()}
        made = manifest(hashes)
        self.claim(made.epoch)
        for name, content in blobs.items():
            self._put(self._blob_key(hashes[name].sha256), content)
        # Once more, for uploading may have taken long.
        self._refuse_if_superseded(made.epoch)
        text = made.to_bytes()
        key = f"{self._prefix}/manifests/{made.name}.json"
        self._put(key, text)
        return Stored(made, _sha256(text), f"s3://{self._s3.bucket}/{key}")

    def newest(self) -> Loaded | None:
        """The newest whole checkpoint, None where there is none at all.

        Raises:
            CheckpointsUnreadable: there are some, and none is whole.

        """
        passed_over: list[str] = []
        names = self.names()
        for name in reversed(names):
            stored = self._read_manifest(name)
            if isinstance(stored, str):
                passed_over.append(stored)
                continue
            blobs = self._read_blobs(stored)
            if isinstance(blobs, str):
                passed_over.append(blobs)
                continue
            return Loaded(stored, blobs, tuple(passed_over))
        if names:
            raise CheckpointsUnreadable(
                f"none of the {len(names)} checkpoints under s3://{self._s3.bucket}/{self._prefix} is whole; "
                + "; ".join(passed_over[:3])
            )
        return None

    def retain(
        self,
        last: int,
        best: int,
        now: datetime,
        kept: Collection[str] = (),
        grace: timedelta = timedelta(0),
    ) -> list[str]:
        """Deletes the checkpoints that are `retention.removable`, and blobs that none then names.

        Returns:
            Names of the manifests that were deleted.

        """
        listed = self._manifests()
        stored = {name: found for name, _ in listed if isinstance(found := self._read_manifest(name), Stored)}
        # What can't be read is neither deleted, for a later release may read it, nor counted as kept.
        readable = [
            Candidate(name, at, stored[name].manifest.mean_return) for name, at in listed if name in stored
        ]
        gone = removable(readable, last, best, kept, grace)
        if not gone:
            return []
        self._delete(f"{self._prefix}/manifests/{name}.json" for name in gone)
        if len(stored) == len(listed):
            mine = {blob.sha256 for name in gone for blob in stored.pop(name).manifest.blobs.values()}
            named = {blob.sha256 for left in stored.values() for blob in left.manifest.blobs.values()}
            self._delete(
                entry["Key"]
                for entry in self._list("blobs/sha256/")
                if (sha := entry["Key"].rpartition("/")[2]) not in named
                and (sha in mine or entry["LastModified"] < now.astimezone(UTC) - GARBAGE_AGE)
            )
        return gone

    def put_file(self, key: str, content: bytes) -> None:
        """Stores a file beside the checkpoints, such as one of TensorBoard."""
        self._put(f"{self._prefix}/{key}", content)

    def get_file(self, key: str) -> bytes | None:
        """Content of any file below the prefix; None where there is none."""
        return self._get(f"{self._prefix}/{key}" if self._prefix else key)

    def _refuse_if_superseded(self, epoch: int) -> list[tuple[int, str]]:
        claims = self.claims()
        for other, name in claims:
            if other > epoch or (other == epoch and name != self._name):
                raise Superseded(f"another trainer has claimed epoch {other}; this one holds epoch {epoch}")
        return claims

    def _claim_key(self, epoch: int, name: str) -> str:
        return f"{self._prefix}/epochs/{epoch}-{name}"

    def _manifests(self) -> list[tuple[str, datetime]]:
        """Name of each manifest and when it was stored, oldest line of training first."""
        found: list[tuple[tuple[int, int, int], str, datetime]] = []
        for entry in self._list("manifests/"):
            name = entry["Key"].rpartition("/")[2].removesuffix(".json")
            place = order(name)
            if place is not None:
                found.append((place, name, entry["LastModified"]))
        return [(name, stored) for _, name, stored in sorted(found)]

    def _read_manifest(self, name: str) -> Stored | str:
        key = f"{self._prefix}/manifests/{name}.json"
        content = self._get(key)
        if content is None:
            return f"{name} has vanished"
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            return f"{name} is no manifest ({error.error_count()} errors)"
        return Stored(manifest, _sha256(content), f"s3://{self._s3.bucket}/{key}")

    def _read_blobs(self, stored: Stored) -> dict[str, bytes] | str:
        found: dict[str, bytes] = {}
        for name, blob in stored.manifest.blobs.items():
            content = self._get(self._blob_key(blob.sha256))
            if content is None:
                return f"{stored.manifest.name} lacks its {name}"
            if len(content) != blob.size or _sha256(content) != blob.sha256:
                return f"{stored.manifest.name} has a damaged {name} ({len(content)} of {blob.size} bytes)"
            found[name] = content
        return found

    def _blob_key(self, sha256: str) -> str:
        return f"{self._prefix}/blobs/sha256/{sha256}"

    def _list(self, folder: str) -> Iterable[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page: dict[str, Any] = self._ask(
                lambda token=token: self._client.list_objects_v2(
                    Bucket=self._s3.bucket, Prefix=f"{self._prefix}/{folder}", **token
                )
            )
            yield from page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _get(self, key: str) -> bytes | None:
        def read() -> bytes | None:
            try:
                return self._client.get_object(Bucket=self._s3.bucket, Key=key)["Body"].read()
            except ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):
                    return None
                raise

        return self._ask(read)

    def _put(self, key: str, content: bytes) -> None:
        self._ask(lambda: self._client.put_object(Bucket=self._s3.bucket, Key=key, Body=content))

    def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._ask(lambda key=key: self._client.delete_object(Bucket=self._s3.bucket, Key=key))

    def _ask(self, call: Callable[[], _T]) -> _T:
        where = f"bucket {self._s3.bucket} at {self._s3.endpoint or 'AWS, region ' + self._s3.region}"
        try:
            return call()
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageDenied(
                f"{where}: no credentials. Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in "
                "checkpoint.s3.secretRef, or give the pod an identity"
            ) from error
        except ClientError as error:
            code = _code(error)
            if _blames_the_request(error):
                raise StorageDenied(f"{where}: {code}. {_advice(code)}") from error
            raise StorageUnavailable(f"{where}: {code}") from error
        except (BotoCoreError, OSError) as error:
            raise StorageUnavailable(f"{where}: {type(error).__name__}") from error


def _code(error: ClientError) -> str:
    response: Any = error.response
    return str(response.get("Error", {}).get("Code", "Unknown"))


def _blames_the_request(error: ClientError) -> bool:
    """Servers have codes of their own (`XMinioAdminNoSuchUser`), but agree on the HTTP status."""
    response: Any = error.response
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    return 300 <= status < 500 and status not in PASSING


def _advice(code: str) -> str:
    match code:
        case "NoSuchBucket":
            return "Create the bucket, or correct checkpoint.s3.bucket"
        case _ if any(word in code for word in ("AccessKey", "Signature", "Token", "User")):
            return "Correct the keys in the Secret of checkpoint.s3.secretRef"
        case "AuthorizationHeaderMalformed" | "PermanentRedirect":
            return "Correct checkpoint.s3.region or endpoint"
        case _:
            return "Allow s3:ListBucket, GetObject, PutObject and DeleteObject for these credentials"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
