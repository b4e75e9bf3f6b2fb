"""Two policies in memory: the one that answers and the one before it. A swap moves pointers, nothing else."""

import asyncio
import logging
import re
from pathlib import Path

import numpy as np

from ratchet.policies import ServedPolicy
from ratchet.policies.artifact import Artifact, golden_observations
from ratchet.policies.errors import ArtifactError, ArtifactMissing, ArtifactUnavailable
from ratchet.policies.sources import Server, in_bucket, read_source
from ratchet_inference.residents.cache import PolicyCache

log = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30


class Residents:
    """The policies that a server answers with; belongs to one event loop.

    Args:
        cache: folder for policies from a bucket, or None to keep none.
        server: of buckets; default AWS.
        cache_bytes: of all policies in the cache together.
        max_batch: the largest batch that a policy is warmed up with.
        seed: of rows that bring none; None takes it from the machine.

    """

    def __init__(
        self,
        cache: Path | None = None,
        server: Server | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
        max_batch: int = 64,
        seed: int | None = None,
    ) -> None:
        self._cache = None if cache is None else PolicyCache(cache, cache_bytes)
        self._server = server
        self._max_batch = max_batch
        self._seed = seed
        self._current: ServedPolicy | None = None
        self._previous: ServedPolicy | None = None
        self._loading = asyncio.Lock()

    @property
    def current(self) -> ServedPolicy | None:
        """The one that answers; None until the first swap."""
        return self._current

    @property
    def previous(self) -> ServedPolicy | None:
        """The one before, ready to answer again."""
        return self._previous

    async def load(self, source: str, digest: str | None = None) -> ServedPolicy:
        """A policy that is verified and warm, and does not answer yet; one at a time, off the loop's thread.

        Args:
            source: folder, `s3://bucket/prefix`, or the `s3://…/manifests/<name>.json` of a checkpoint.
            digest: SHA-256 of the policy, or of the checkpoint's manifest, with or without `sha256:` before
                it. None or empty takes what is there.

        Raises:
            ArtifactError: there is none, it is not what it should be, or it answers otherwise than it did
                where it was made. What is resident stays.

        """
        wanted = (digest or "").removeprefix("sha256:").lower() or None
        if wanted and not re.fullmatch("[0-9a-f]{64}", wanted):
            raise ArtifactError(f"{digest} is no SHA-256: write its 64 hexadecimal digits")
        async with self._loading:
            return await asyncio.to_thread(self._load, source, wanted)

    def swap(self, policy: ServedPolicy) -> None:
        """Lets a policy answer from now on; the one that did stays as the previous one."""
        if self._current is None or policy.digest != self._current.digest:
            self._previous = self._current
        self._current = policy

    def _load(self, source: str, digest: str | None) -> ServedPolicy:
        artifact = self._artifact(source, digest)
        policy = artifact.policy(self._seed)
        _warm(policy, artifact, self._max_batch)
        fields = {"digest": policy.digest, "weights": artifact.description.weights}
        log.info("loaded", extra={"fields": fields | {"arithmetic": policy.arithmetic}})
        return policy

    def _artifact(self, source: str, digest: str | None) -> Artifact:
        if self._cache is None or not in_bucket(source):
            return read_source(source, digest, self._server)
        # What has the digest that was asked for is right wherever it lies.
        kept = self._cache.find(source, digest) if digest else None
        if kept is not None:
            return kept
        try:
            artifact = read_source(source, digest, self._server)
        except (ArtifactUnavailable, ArtifactMissing) as error:
            kept = self._cache.find(source, digest)
            if kept is None:
                raise
            fields = {"source": source, "digest": kept.digest, "why": str(error)}
            log.warning("serves the copy on disk", extra={"fields": fields})
            return kept
        resident = {policy.digest for policy in (self._current, self._previous) if policy is not None}
        self._cache.keep(artifact, source, digest, resident)
        return artifact


def _warm(policy: ServedPolicy, artifact: Artifact, max_batch: int) -> None:
    """Makes every buffer, and touches every page, before the first request needs them."""
    observations = golden_observations(artifact.files["golden.safetensors"], policy.spec.observation)
    for rows in {1, 2, 4, 16, max_batch}:
        policy.decide(
            np.resize(observations, (rows, *policy.spec.observation.shape)),
            masks=None,
            deterministic=np.zeros(rows, np.bool_),
            temperature=np.ones(rows, np.float32),
            seeds=[None] * rows,
            states=None,
        )
