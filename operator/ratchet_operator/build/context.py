"""What every builder is told: whose child it makes, and the metadata that all children share."""

from dataclasses import dataclass

from ratchet.api.v1alpha1 import RLTrainingJobSpec, RolloutPoolSpec, TrainingConfig
from ratchet_operator.kinds import (
    API_VERSION,
    COMPONENT_LABEL,
    JOB_LABEL,
    JOB_UID_LABEL,
    POOL_LABEL,
    Json,
    Kind,
    base_name,
    label_value,
    name_of,
    namespace_of,
    uid_of,
)
from ratchet_operator.settings import Installation


def owner_reference(kind: str, name: str, uid: str) -> Json:
    """The reference that lets garbage collection remove a child with its owner."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def identity(kind: Kind, namespace: str, name: str, labels: dict[str, str], owner: Json) -> Json:
    """A child with nothing but its identity."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": [owner]},
    }


@dataclass(frozen=True, slots=True)
class JobContext:
    """An RLTrainingJob as its builders see it."""

    namespace: str
    name: str
    uid: str
    spec: RLTrainingJobSpec
    installation: Installation

    @classmethod
    def of(cls, job: Json, spec: RLTrainingJobSpec, installation: Installation) -> "JobContext":
        """From the live object and its parsed spec."""
        return cls(namespace_of(job), name_of(job), uid_of(job), spec, installation)

    @property
    def config(self) -> TrainingConfig:
        """What trainer and workers read."""
        return self.spec.config(self.namespace, self.name, self.uid)

    @property
    def config_name(self) -> str:
        """Name of the ConfigMap."""
        return f"{base_name(self.name)}-config"

    @property
    def redis_name(self) -> str:
        """Name of Redis' Deployment, Service and Secret."""
        return f"{base_name(self.name)}-redis"

    @property
    def trainer_name(self) -> str:
        """Name of the trainer's Deployment and Service."""
        return f"{base_name(self.name)}-trainer"

    @property
    def pool_name(self) -> str:
        """Name of the job's own RolloutPool."""
        return f"{base_name(self.name)}-rollouts"

    @property
    def is_redis_managed(self) -> bool:
        """Whether Redis is a child of the job."""
        return self.spec.experience.type == "Managed"

    @property
    def redis_secret_name(self) -> str:
        """The Secret that holds REDIS_URL."""
        external = self.spec.experience.external
        return external.secret_ref.name if external is not None else self.redis_name

    @property
    def owner(self) -> Json:
        """Reference to the job."""
        return owner_reference("RLTrainingJob", self.name, self.uid)

    def labels(self, component: str) -> dict[str, str]:
        """Labels of a child; the UID tells its pods from those of an earlier job of the same name."""
        return {**self.selector(component), JOB_UID_LABEL: self.uid, **recommended_labels(component)}

    def selector(self, component: str) -> dict[str, str]:
        """Labels that find the pods of a component of this job."""
        return {JOB_LABEL: label_value(self.name), COMPONENT_LABEL: component}

    def child(self, kind: Kind, name: str, component: str) -> Json:
        """An object with nothing but its identity."""
        return identity(kind, self.namespace, name, self.labels(component), self.owner)


@dataclass(frozen=True, slots=True)
class PoolContext:
    """A RolloutPool and the job it works for, as the builder of its workers sees them."""

    name: str
    uid: str
    spec: RolloutPoolSpec
    job: JobContext

    @property
    def owner(self) -> Json:
        """Reference to the pool."""
        return owner_reference("RolloutPool", self.name, self.uid)

    @property
    def selector(self) -> dict[str, str]:
        """Labels that find the pods of this pool."""
        return pool_selector(self.job.name, self.name)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of a worker set and its pods."""
        return {**self.selector, JOB_UID_LABEL: self.job.uid, **recommended_labels("rollouts")}


def pool_selector(job: str, pool: str) -> dict[str, str]:
    """Labels that find the pods of a pool."""
    return {JOB_LABEL: label_value(job), COMPONENT_LABEL: "rollouts", POOL_LABEL: label_value(pool)}


def recommended_labels(component: str) -> dict[str, str]:
    """Those that Kubernetes recommends."""
    return {
        "app.kubernetes.io/name": f"ratchet-{component}",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "ratchet",
        "app.kubernetes.io/managed-by": "ratchet-operator",
    }
