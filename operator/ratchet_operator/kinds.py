"""The kinds of object that the operator knows, and how to read and name them as plain JSON."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

API_VERSION = "ratchet.dev/v1alpha1"
FIELD_MANAGER = "ratchet-operator"
JOB_LABEL = "ratchet.dev/job"
JOB_UID_LABEL = "ratchet.dev/job-uid"
POOL_LABEL = "ratchet.dev/pool"
COMPONENT_LABEL = "ratchet.dev/component"
ATTEMPT_LABEL = "ratchet.dev/attempt"
SERVING_LABEL = "ratchet.dev/policy-deployment"
REVISION_LABEL = "ratchet.dev/revision"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of API object."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """API group, empty for core."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """API version without its group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
        """URL path of the collection, the object, or its subresource."""
        parts = [f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, sub) if part]
        return "/".join(parts)


TRAINING_JOB = Kind(API_VERSION, "RLTrainingJob", "rltrainingjobs")
ROLLOUT_POOL = Kind(API_VERSION, "RolloutPool", "rolloutpools")
POLICY_DEPLOYMENT = Kind(API_VERSION, "PolicyDeployment", "policydeployments")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
WORKER_SET = Kind("apps/v1", "ReplicaSet", "replicasets")
SERVICE = Kind("v1", "Service", "services")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SECRET = Kind("v1", "Secret", "secrets")
POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
EVENT = Kind("v1", "Event", "events")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
AUTOSCALER = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
ENDPOINT_SLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
HTTP_ROUTE = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")

KIND_BY_NAME = {
    kind.kind: kind
    for kind in (
        TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT, DEPLOYMENT, WORKER_SET, SERVICE, CONFIG_MAP,
        SECRET, POD, NODE, EVENT, NETWORK_POLICY, AUTOSCALER, DISRUPTION_BUDGET, ENDPOINT_SLICE, LEASE,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What the queue holds: one object by kind and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


def meta(obj: Json) -> Json:
    """The metadata of an object."""
    return sub(obj, "metadata")


def name_of(obj: Json) -> str:
    """Name."""
    return meta(obj).get("name", "")


def namespace_of(obj: Json) -> str:
    """Namespace, empty for cluster-scoped objects."""
    return meta(obj).get("namespace", "")


def uid_of(obj: Json) -> str:
    """UID."""
    return meta(obj).get("uid", "")


def version_of(obj: Json) -> int:
    """ResourceVersion as a number; API servers promise that it grows (KEP-5504)."""
    text = meta(obj).get("resourceVersion") or "0"
    return int(text) if text.isdecimal() else 0


def labels_of(obj: Json) -> dict[str, str]:
    """Labels."""
    return sub(obj, "metadata", "labels")


def annotations_of(obj: Json) -> dict[str, str]:
    """Annotations."""
    return sub(obj, "metadata", "annotations")


def is_deleting(obj: Json) -> bool:
    """Whether the object is on its way out."""
    return bool(meta(obj).get("deletionTimestamp"))


def controller_of(obj: Json) -> Json | None:
    """The owner reference with `controller: true`."""
    for owner in items(meta(obj), "ownerReferences"):
        if owner.get("controller"):
            return owner
    return None


def is_owned_by(obj: Json, uid: str) -> bool:
    """Whether the object's controller has this UID."""
    owner = controller_of(obj)
    return owner is not None and owner.get("uid") == uid


def digest(value: Any, length: int = 8) -> str:
    """A short hash of a JSON value, the same on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


LONGEST_JOB = 38  # <job>-rollouts-<hash8>-<random5> must fit a DNS label of 63
LONGEST_POOL = 47  # <pool>-<hash8>-<random5> too
_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


def base_name(name: str, longest: int = LONGEST_JOB) -> str:
    """What a child's name begins with: the owner's name, or a shortened form with its hash where
    the name is no DNS label or is too long for what is appended to it.
    """
    if len(name) <= longest and _LABEL.match(name):
        return name
    plain = re.sub(r"[^-a-z0-9]", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"j{plain}"
    return f"{plain[: longest - 9].rstrip('-')}-{digest(name)}"


def label_value(name: str) -> str:
    """An object's name as a label value (63 characters at most)."""
    return name if len(name) <= 63 else base_name(name)


def sub(obj: Json | None, *path: str) -> Json:
    """The object at a path, empty where there is none."""
    here: Any = obj
    for part in path:
        here = here.get(part) if isinstance(here, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return here if isinstance(here, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def items(obj: Json | None, key: str) -> list[Json]:
    """The list of objects under a key, empty where there is none."""
    found: Any = (obj or {}).get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType]


def status_of(obj: Json | None) -> Json:
    """The status of an object, empty where there is none."""
    return sub(obj, "status")


def spec_of(obj: Json | None) -> Json:
    """The spec of an object, empty where there is none."""
    return sub(obj, "spec")
