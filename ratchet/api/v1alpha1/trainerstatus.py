"""The JSON that a trainer answers on /status, and the exit codes that trainers and workers use."""

from enum import IntEnum
from typing import Literal

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.api.v1alpha1.trainingjob import Checkpoints, Evaluations, Progress


class ExitCode(IntEnum):
    """Why a trainer or worker ended by itself. The last line of its termination message says more."""

    CONFIG = 10  # the job can't work as written: unknown environment, unsupported space
    STORAGE = 11  # S3 refused: wrong credentials, missing bucket
    DIVERGED = 12  # NaN or infinity in loss, gradient or parameters
    REDIS = 13  # Redis was not reachable for too long
    FENCED = 14  # a newer trainer of the same job has taken over
    CHECKPOINTS = 15  # checkpoints exist and none of them can be read


class PoolExperience(ApiModel):
    """What the learner saw from the workers of one pool over the last seconds."""

    steps_per_second: float = 0.0
    waiting_fraction: float | None = None
    workers: int = 0


class TrainerStatus(ApiModel):
    """Where a trainer stands. A pod that cannot be asked for it is a value (None), not an error."""

    uid: str
    attempt: int
    epoch: int = Field(description="Fencing token: grows with each start of a trainer of this job.")
    state: Literal["Starting", "WaitingForWorkers", "Training", "Finished"]
    finished_reason: Literal["TargetReturnReached", "MaxStepsReached", "MaxDurationReached"] | None = None
    message: str = ""
    device: Literal["CPU", "GPU"] = "CPU"
    resumed_from: str | None = None
    passed_over: list[str] = Field(
        default=[], description="Newer checkpoints that are broken: a sentence for each."
    )
    active_seconds: float = 0.0
    progress: Progress = Progress()
    evaluation: Evaluations = Evaluations()
    checkpoints: Checkpoints = Checkpoints()
    pools: dict[str, PoolExperience] = Field(default={})
