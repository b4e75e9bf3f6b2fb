"""RolloutPool: elastic workers for one RLTrainingJob."""

from typing import Annotated, ClassVar

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel, Rule, Transition
from ratchet.api.v1alpha1.common import Condition, LocalReference, PodFields


class RolloutPoolSpec(PodFields):
    """Workers of one shape. A job makes one pool; more may be added, on spot nodes for instance."""

    training_job_ref: LocalReference
    replicas: int = Field(default=1, ge=0, le=10_000)
    min_replicas: int = Field(default=0, ge=0)
    max_replicas: int = Field(default=10_000, ge=1, le=10_000)
    suspend: bool = False

    rules: ClassVar = (
        *PodFields.rules,
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "minReplicas is above maxReplicas: write minReplicas <= maxReplicas",
            lambda self: self.min_replicas <= self.max_replicas,
        ),
    )
    transitions: ClassVar = (
        Transition(
            "self.trainingJobRef == oldSelf.trainingJobRef",
            "trainingJobRef can't be changed: create a pool with another name",
        ),
    )


class RolloutPoolStatus(ApiModel):
    """What is. `replicas` and `selector` serve the scale subresource."""

    observed_generation: int | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default=[])
    replicas: int = 0
    wanted: int = 0
    ready: int = 0
    restarts: int = 0
    steps_per_second: float | None = None
    waiting_fraction: float | None = Field(
        default=None, description="Fraction of time workers wait for the learner: back-pressure."
    )
    selector: str | None = None
