"""ratchet.dev/v1alpha1: the one schema that CRDs, operator, trainer and command come from."""

from ratchet.api.v1alpha1.base import ApiModel, Rule, Transition, seconds
from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec, PolicyDeploymentStatus
from ratchet.api.v1alpha1.rolloutpool import RolloutPoolSpec, RolloutPoolStatus
from ratchet.api.v1alpha1.trainerstatus import ExitCode, PoolExperience, TrainerStatus
from ratchet.api.v1alpha1.training import TrainingConfig
from ratchet.api.v1alpha1.trainingjob import RLTrainingJobSpec, RLTrainingJobStatus

__all__ = [
    "ApiModel",
    "ExitCode",
    "PolicyDeploymentSpec",
    "PolicyDeploymentStatus",
    "PoolExperience",
    "RLTrainingJobSpec",
    "RLTrainingJobStatus",
    "RolloutPoolSpec",
    "RolloutPoolStatus",
    "Rule",
    "TrainerStatus",
    "TrainingConfig",
    "Transition",
    "seconds",
]
