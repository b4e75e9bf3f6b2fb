"""Policies from a bucket on this machine's disk: what a server starts from while the bucket is gone.

Each is verified whenever it is read, so that a damaged disk is no worse than an empty one.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from ratchet.policies.artifact import Artifact, read_folder, write_folder
from ratchet.policies.errors import ArtifactError

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_NAMES = "by-source"


class PolicyCache:
    """Artifacts in a folder; those used longest ago go first when they outgrow it.

    Args:
        folder: made when needed. No two processes that write may share it.
        most_bytes: of all artifacts together.

    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def find(self, source: str, digest: str | None) -> Artifact | None:
        """What was stored for a source and the digest that was asked for, if it is whole.

        A policy's own digest finds it whatever its source was.
        """
        own = digest is not None and _DIGEST.match(digest) and (self._folder / digest).is_dir()
        found = digest if own else self._named(source, digest)
        if found is None:
            return None
        folder = self._folder / found
        try:
            artifact = read_folder(folder, found)
        except (ArtifactError, OSError) as error:
            log.warning("a kept policy is of no use", extra={"fields": {"digest": found, "why": str(error)}})
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with suppress(OSError):  # a disk that can only be read
            os.utime(folder)
        return artifact

    def keep(self, artifact: Artifact, source: str, digest: str | None, needed: Collection[str]) -> None:
        """Stores an artifact; a disk that takes none is a warning and no error.

        Args:
            artifact: to store.
            source: where it came from.
            digest: by which it was asked for.
            needed: digests that stay whatever room they take.

        """
        try:
            write_folder(artifact, self._folder / artifact.digest)
            os.utime(self._folder / artifact.digest)
            for asked in {digest, None}:
                name = self._name(source, asked)
                name.parent.mkdir(exist_ok=True)
                unfinished = name.with_suffix(".tmp")
                unfinished.write_text(artifact.digest)
                unfinished.replace(name)
            self._shrink({artifact.digest, *needed})
        except (ArtifactError, OSError) as error:
            log.warning("a policy was not kept on disk", extra={"fields": {"why": str(error)}})

    def _named(self, source: str, digest: str | None) -> str | None:
        try:
            found = self._name(source, digest).read_text()
        except OSError:
            return None
        return found if _DIGEST.match(found) else None

    def _name(self, source: str, digest: str | None) -> Path:
        return self._folder / _NAMES / hashlib.sha256(f"{source} {digest or ''}".encode()).hexdigest()

    def _shrink(self, needed: Collection[str]) -> None:
        sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in self._policies()}
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime_ns):
            if total <= self._most_bytes:
                break
            if folder.name not in needed:
                shutil.rmtree(folder)
                total -= sizes[folder]
        kept = {folder.name for folder in self._policies()}
        for name in (self._folder / _NAMES).iterdir():
            if name.read_text() not in kept:
                name.unlink()

    def _policies(self) -> Iterator[Path]:
        return (folder for folder in self._folder.iterdir() if _DIGEST.match(folder.name))
