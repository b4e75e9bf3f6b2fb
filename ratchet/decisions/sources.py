"""Where the files of a decision log lie: a folder or a bucket. Names and bytes, nothing of their content."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import connect


class Source(Protocol):
    """The files of a log, by key: their path within it, with slashes."""

    def keys(self, folder: str) -> Iterator[str]:
        """Of the finished Parquet files below a folder, sorted."""
        ...

    def read(self, key: str) -> bytes:
        """The content of a file."""
        ...


class Folder:
    """A log that was written to a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keys(self, folder: str) -> Iterator[str]:
        """As `Source.keys`."""
        for path in sorted((self._path / folder).rglob("*.parquet")):
            yield path.relative_to(self._path).as_posix()

    def read(self, key: str) -> bytes:
        """As `Source.read`; raises OSError."""
        return (self._path / key).read_bytes()


class Bucket:
    """A log in S3.

    Args:
        s3: where it was written to.
        client: of boto3; by default one for `s3`.

    Both methods raise what boto3 raises.

    """

    def __init__(self, s3: S3, client: Any = None) -> None:
        self._bucket = s3.bucket
        self._prefix = s3.prefix.strip("/") + "/" if s3.prefix.strip("/") else ""
        self._client = client or connect(s3)

    def keys(self, folder: str) -> Iterator[str]:
        """As `Source.keys`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{folder}/"
        )
        for page in pages:
            for entry in page.get("Contents", []):
                key = str(entry["Key"])
                if key.endswith(".parquet"):
                    yield key.removeprefix(self._prefix)

    def read(self, key: str) -> bytes:
        """As `Source.read`."""
        return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
