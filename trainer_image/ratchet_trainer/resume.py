"""What an earlier trainer left in a checkpoint, and what a later one makes of it."""

import json
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_torch
from torch import Tensor

from ratchet.api.v1alpha1 import TrainerStatus
from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.api.v1alpha1.trainingjob import Checkpoints, Evaluations, Progress
from ratchet.checkpoints import CheckpointsUnreadable, Loaded
from ratchet.policies.artifact import DESCRIPTION, GOLDEN, describe, golden_observations
from ratchet.policies.errors import ArtifactError
from ratchet.policies.spec import EnvironmentSpec
from ratchet_trainer.intake import Intake
from ratchet_trainer.saving import with_stored
from ratchet_trainer.stopping import Reason

SCHEMA = 1
PASSED_OVER_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint, read."""

    name: str
    epoch: int
    digest: str
    environment: EnvironmentSpec
    tensors: dict[str, Tensor]
    observations: NDArray[Any]
    acted: EvaluatedActions | None
    counts: dict[str, Any]
    evaluations: Evaluations
    next_evaluation: int
    version: int
    updates: int
    active_seconds: float
    finished: Reason | None
    progress: Progress
    checkpoints: Checkpoints
    passed_over: list[str]

    @classmethod
    def read(cls, loaded: Loaded) -> "Resumed":
        """Raises CheckpointsUnreadable where it is whole, and its content is not what `to_json` gave."""
        name = loaded.stored.manifest.name
        try:
            values: dict[str, Any] = json.loads(loaded.blobs["progress"])
            if values["schema"] == SCHEMA:
                return cls._of(loaded, values)
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            reason = f"checkpoint {name} is whole and can't be read: {type(error).__name__}: {error}"
            raise CheckpointsUnreadable(reason) from error
        raise CheckpointsUnreadable(
            f"checkpoint {name} has schema {values['schema']}, and this trainer reads {SCHEMA}: "
            "go on with the release that wrote it"
        )

    @classmethod
    def _of(cls, loaded: Loaded, values: dict[str, Any]) -> "Resumed":
        manifest = loaded.stored.manifest
        environment = EnvironmentSpec.model_validate(values["environment"])
        return cls(
            name=f"manifests/{manifest.name}.json",
            epoch=manifest.epoch,
            digest=loaded.stored.digest,
            environment=environment,
            tensors=load_torch(loaded.blobs["state"]),
            observations=golden_observations(loaded.blobs.get(GOLDEN), environment.observation),
            acted=_acted(loaded),
            counts=values["counts"],
            evaluations=Evaluations.model_validate(values["evaluations"]),
            next_evaluation=values["nextEvaluation"],
            version=values["version"],
            updates=values["updates"],
            active_seconds=values["activeSeconds"],
            finished=values["finished"],
            progress=Progress.model_validate(values["progress"]),
            checkpoints=with_stored(Checkpoints.model_validate(values["checkpoints"]), loaded.stored),
            passed_over=list(loaded.passed_over[:PASSED_OVER_SHOWN]),
        )

    @staticmethod
    def to_json(
        *,
        environment: EnvironmentSpec,
        intake: Intake,
        evaluations: Evaluations,
        next_evaluation: int,
        version: int,
        updates: int,
        active_seconds: float,
        finished: Reason | None,
        progress: Progress,
        saved: Checkpoints,
    ) -> dict[str, Any]:
        """The part of a checkpoint that is no tensor."""
        return {
            "schema": SCHEMA,
            "environment": environment.model_dump(mode="json"),
            "counts": intake.to_json(),
            "evaluations": evaluations.to_wire(),
            "nextEvaluation": next_evaluation,
            "version": version,
            "updates": updates,
            "activeSeconds": active_seconds,
            "finished": finished,
            "progress": progress.to_wire(),
            "checkpoints": saved.to_wire(),
        }

    def intake(self, max_policy_lag: int) -> Intake:
        """Counts and high-water marks to go on from."""
        return Intake.from_json(max_policy_lag, self.counts)

    def as_status(self, status: TrainerStatus) -> TrainerStatus:
        """What is known before anything goes on; all there is to say where the job has finished."""
        return status.model_copy(
            update={
                "epoch": self.epoch,
                "state": status.state if self.finished is None else "Finished",
                "finished_reason": self.finished,
                "resumed_from": self.name,
                "passed_over": self.passed_over,
                "active_seconds": self.active_seconds,
                "progress": self.progress,
                "evaluation": self.evaluations,
                "checkpoints": self.checkpoints,
            }
        )


def _acted(loaded: Loaded) -> EvaluatedActions | None:
    """Of the policy in the checkpoint; training goes on without it."""
    text = loaded.blobs.get(DESCRIPTION)
    try:
        return describe(text).evaluated if text is not None else None
    except ArtifactError:
        return None
