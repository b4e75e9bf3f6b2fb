"""The kinds of the API group: their names, models, columns and what holds for the whole object.

What belongs to one field lives with its model; here is what only the object as a whole knows.
"""

import re
from dataclasses import dataclass
from typing import Any

from ratchet.api.v1alpha1.base import ApiModel, Rule
from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec, PolicyDeploymentStatus
from ratchet.api.v1alpha1.rolloutpool import RolloutPoolSpec, RolloutPoolStatus
from ratchet.api.v1alpha1.trainingjob import RLTrainingJobSpec, RLTrainingJobStatus


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; priority 1 shows only with `-o wide`."""

    name: str
    path: str
    type: str = "integer"
    priority: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Paths that make `kubectl scale` and a HorizontalPodAutoscaler work."""

    spec_replicas: str
    status_replicas: str
    selector: str | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind.

    Attributes:
        rules: over the whole object as it is written in YAML; `holds` gets a mapping.

    """

    name: str
    plural: str
    short_name: str
    description: str
    spec: type[ApiModel]
    status: type[ApiModel]
    rules: tuple[Rule, ...]
    columns: tuple[Column, ...]
    scale: Scale


NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


def _name_of(resource: dict[str, Any]) -> str:
    return str(resource["metadata"]["name"])


def _name_rules(longest: int) -> tuple[Rule, ...]:
    return (
        Rule(
            f"size(self.metadata.name) <= {longest}",
            f"metadata.name is too long: use at most {longest} characters, for the names of pods "
            "and Services are made from it",
            lambda resource: len(_name_of(resource)) <= longest,
        ),
        Rule(
            f"self.metadata.name.matches('{NAME_PATTERN}')",
            "metadata.name can't name a Service: begin with a letter, then use lower-case letters, "
            "digits and hyphens, no dots",
            lambda resource: re.match(NAME_PATTERN, _name_of(resource)) is not None,
        ),
    )


AGE = Column("Age", ".metadata.creationTimestamp", "date")

RL_TRAINING_JOB = Kind(
    name="RLTrainingJob",
    plural="rltrainingjobs",
    short_name="rlj",
    description="A policy's training, from environment to checkpoints.",
    spec=RLTrainingJobSpec,
    status=RLTrainingJobStatus,
    rules=_name_rules(40),
    columns=(
        # The operator writes the condition that counts first.
        Column("Status", ".status.conditions[0].type", "string"),
        Column("Reason", ".status.conditions[0].reason", "string"),
        Column("Steps", ".status.progress.steps"),
        Column(
            "Return", ".status.progress.meanReturn", "number", 0, "Mean of the last 100 training episodes."
        ),
        Column("Eval", ".status.evaluation.latest.meanReturn", "number", 0, "Mean of the newest evaluation."),
        Column("Steps/s", ".status.progress.stepsPerSecond", "number"),
        Column("Workers", ".status.workers.ready", "integer", 0, "Workers ready."),
        AGE,
        Column("Version", ".status.progress.policyVersion", "integer", 1),
        Column("Lag", ".status.progress.policyLag", "number", 1, "Mean versions behind of the last batch."),
        Column("Device", ".status.device", "string", 1),
        Column("Checkpoint", ".status.checkpoints.latest.time", "date", 1, "Age of the newest checkpoint."),
        Column("Attempt", ".status.attempt", "integer", 1),
    ),
    scale=Scale(".spec.rollouts.replicas", ".status.workers.ready"),
)

ROLLOUT_POOL = Kind(
    name="RolloutPool",
    plural="rolloutpools",
    short_name="rlp",
    description="Elastic workers that play the environment for one RLTrainingJob.",
    spec=RolloutPoolSpec,
    status=RolloutPoolStatus,
    rules=_name_rules(50),
    columns=(
        Column("Wanted", ".status.wanted"),
        Column("Ready", ".status.ready"),
        Column("Steps/s", ".status.stepsPerSecond", "number"),
        Column(
            "Waiting",
            ".status.waitingFraction",
            "number",
            0,
            "Fraction of time spent waiting for the learner.",
        ),
        Column("Restarts", ".status.restarts"),
        AGE,
        Column("Job", ".spec.trainingJobRef.name", "string", 1),
        Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', "string", 1),
    ),
    scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
)

POLICY_DEPLOYMENT = Kind(
    name="PolicyDeployment",
    plural="policydeployments",
    short_name="rlpd",
    description="A policy that serves, and the way a newer one takes to replace it.",
    spec=PolicyDeploymentSpec,
    status=PolicyDeploymentStatus,
    rules=_name_rules(40),
    columns=(
        Column("Serving", ".status.stable.name", "string", 0, "Digest of the policy that serves."),
        Column("Ready", ".status.ready", "integer", 0, "Pods ready, of all arms."),
        Column("Trial", ".status.canary.name", "string", 0, "Digest of the policy on trial."),
        Column("Weight", ".status.canary.weight", "integer", 0, "Percent of new episodes on trial."),
        Column("Phase", ".status.trial.phase", "string", 0, "Of the trial."),
        Column("Reason", '.status.conditions[?(@.type=="Progressing")].reason', "string"),
        AGE,
        Column("Strategy", ".spec.strategy.type", "string", 1),
        Column("Message", '.status.conditions[?(@.type=="Progressing")].message', "string", 1),
    ),
    scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (RL_TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT)}
