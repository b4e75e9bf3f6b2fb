"""Checkpoints in the background: training goes on while one is uploaded.

A snapshot is taken on the learner's thread (a copy in memory); encoding, uploading and retention happen on
another. One is in flight at most.
"""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save as save_torch
from torch import Tensor

from ratchet.api.v1alpha1.base import seconds
from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.api.v1alpha1.training import Checkpoint
from ratchet.api.v1alpha1.trainingjob import CheckpointInfo, Checkpoints
from ratchet.checkpoints import Blob, CheckpointStore, Lineage, Manifest, StorageUnavailable, Stored
from ratchet.checkpoints.manifest import checkpoint_name
from ratchet.policies.artifact import PolicyLineage, make
from ratchet.policies.spec import PolicySpec

log = logging.getLogger(__name__)

Why = Literal["interval", "best", "final", "shutdown"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that goes into one checkpoint, detached from the learner.

    Attributes:
        policy: what acts, and what estimates the value, by the names of `ratchet.policies`.
        observations: (K, *observation shape) from training, by which a copy of the policy is checked.
        evaluated: what this very policy did in an evaluation; None where it was not evaluated.

    """

    why: Why
    epoch: int
    version: int
    steps: int
    mean_return: float | None
    tensors: dict[str, Tensor]
    policy: dict[str, NDArray[np.float32]]
    policy_spec: PolicySpec
    observations: NDArray[Any]
    progress: dict[str, Any]
    metrics: dict[str, float]
    evaluated: EvaluatedActions | None = None


class Saver:
    """Writes snapshots.

    Args:
        store: of this job.
        settings: what to retain.
        lineage: of every checkpoint that this process writes.
        companions: files to upload after each checkpoint, such as TensorBoard's, by key.
        kept: names of checkpoints that must stay, None while that can't be told.

    """

    def __init__(
        self,
        store: CheckpointStore,
        settings: Checkpoint,
        lineage: Lineage,
        companions: Callable[[], dict[str, bytes]],
        kept: Callable[[], frozenset[str] | None] = frozenset,
    ) -> None:
        self._store = store
        self._settings = settings
        self._lineage = lineage
        self._companions = companions
        self._kept = kept
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._saved = Checkpoints()
        self._complaint = ""
        self._unsaved: Snapshot | None = None

    @property
    def saved(self) -> Checkpoints:
        """The newest and the best that are stored."""
        return self._saved

    @property
    def complaint(self) -> str:
        """Why the last attempt did not work; empty once one has."""
        return self._complaint

    @property
    def unsaved(self) -> Snapshot | None:
        """What the last attempt did not store, though another may; None once one has."""
        return self._unsaved

    @property
    def busy(self) -> bool:
        """One is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def remember(self, saved: Checkpoints) -> None:
        """What an earlier process stored."""
        self._saved = saved

    def begin(self, snapshot: Snapshot) -> None:
        """Starts writing; waits for one that is in flight.

        Raises:
            StorageDenied: an earlier one was refused for good.
            Superseded: a newer trainer writes now.

        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what the last write met, unless it may pass by itself."""
        if self._failure is not None and not self.busy:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self, seconds: float | None = None) -> None:
        """Until nothing is in flight, or that long; raises as `check`."""
        if self._thread is not None:
            self._thread.join(seconds)
        self.check()

    def _run(self, snapshot: Snapshot) -> None:
        try:
            stored = self._write(snapshot)
        except StorageUnavailable as error:
            self._unsaved = snapshot
            self._complaint = f"checkpoint at {snapshot.steps} steps was not stored: {error}"
            log.warning(self._complaint)
        except Exception as error:  # noqa: BLE001 - handed to the learner's thread, which ends by it
            self._failure = error
        else:
            self._unsaved, self._complaint = None, ""
            self._saved = with_stored(self._saved, stored)
            log.info(
                "checkpoint stored",
                extra={"fields": {"uri": stored.uri, "steps": snapshot.steps, "why": snapshot.why}},
            )
            self._tidy()

    def _write(self, snapshot: Snapshot) -> Stored:
        def manifest(blobs: dict[str, Blob]) -> Manifest:
            return Manifest(
                steps=snapshot.steps,
                epoch=snapshot.epoch,
                version=snapshot.version,
                time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                final=snapshot.why == "final",
                mean_return=snapshot.mean_return,
                blobs=blobs,
                metrics=snapshot.metrics,
                lineage=self._lineage,
            )

        policy = make(
            snapshot.policy_spec,
            snapshot.policy,
            snapshot.observations,
            self._policy_lineage(snapshot),
            evaluated=snapshot.evaluated,
        )
        return self._store.write(
            manifest,
            {
                "state": save_torch(snapshot.tensors),
                **policy.files,
                "progress": json.dumps(snapshot.progress).encode(),
            },
        )

    def _policy_lineage(self, snapshot: Snapshot) -> PolicyLineage:
        known = self._lineage.model_dump(include={"namespace", "job", "uid", "attempt", "config", "image"})
        return PolicyLineage(
            **known,
            checkpoint=checkpoint_name(snapshot.steps, snapshot.epoch, snapshot.version),
            steps=snapshot.steps,
            version=snapshot.version,
        )

    def _tidy(self) -> None:
        """What may fail without harm: the next checkpoint does it again."""
        try:
            self._retain()
            for key, content in self._companions().items():
                self._store.put_file(key, content)
        except StorageUnavailable as error:
            log.warning("old checkpoints were not tidied: %s", error)
        except Exception as error:  # noqa: BLE001 - handed to the learner's thread, which ends by it
            self._failure = error

    def _retain(self) -> None:
        kept, asked = self._kept(), self._settings
        if kept is not None:
            grace = timedelta(seconds=seconds(asked.keep_for))
            self._store.retain(asked.keep_last, asked.keep_best, datetime.now(UTC), kept, grace)


def with_stored(before: Checkpoints, stored: Stored) -> Checkpoints:
    """The newest and the best by evaluation, of two equal ones the newer."""
    manifest = stored.manifest
    info = CheckpointInfo(
        name=manifest.name,
        uri=stored.uri,
        digest=f"sha256:{stored.digest}",
        steps=manifest.steps,
        policy_version=manifest.version,
        mean_return=manifest.mean_return,
        time=manifest.time,
    )
    best = before.best
    if info.mean_return is not None and (
        best is None or best.mean_return is None or info.mean_return >= best.mean_return
    ):
        best = info
    return Checkpoints(latest=info, best=best)
