"""The children of a PolicyDeployment but for the servers themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from ratchet.api.v1alpha1.base import seconds
from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec
from ratchet.api.v1alpha1.serverstats import Route
from ratchet_operator.build.context import identity, owner_reference, recommended_labels
from ratchet_operator.kinds import (
    AUTOSCALER,
    COMPONENT_LABEL,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    POLICY_DEPLOYMENT,
    REVISION_LABEL,
    SERVICE,
    SERVING_LABEL,
    Json,
    Kind,
    label_value,
    name_of,
    namespace_of,
    sub,
    uid_of,
)
from ratchet_operator.ledger import LEDGER_ANNOTATION
from ratchet_operator.rollout.book import Book
from ratchet_operator.rollout.revision import Checkpoint, Revision
from ratchet_operator.settings import Installation

PORT = 8080
COMPONENT = CONTAINER = "server"
EVIDENCE_ANNOTATION = "ratchet.dev/evidence"
REQUESTS_METRIC = "ratchet_requests_per_second"


def config_name(name: str) -> str:
    """Of the ConfigMap of the PolicyDeployment with a name."""
    return f"{name}-rollout"


@dataclass(frozen=True, slots=True)
class ServingContext:
    """A PolicyDeployment as its builders see it."""

    namespace: str
    name: str
    uid: str
    spec: PolicyDeploymentSpec
    installation: Installation

    @classmethod
    def of(cls, obj: Json, spec: PolicyDeploymentSpec, installation: Installation) -> "ServingContext":
        """From the live object and its parsed spec."""
        return cls(namespace_of(obj), name_of(obj), uid_of(obj), spec, installation)

    @property
    def config_name(self) -> str:
        """Name of the ConfigMap with ledger and routes."""
        return config_name(self.name)

    @property
    def admin_name(self) -> str:
        """Name of the Secret with the token of the servers' orders."""
        return f"{self.name}-admin"

    @property
    def owner(self) -> Json:
        """Reference to the PolicyDeployment."""
        return owner_reference(POLICY_DEPLOYMENT.kind, self.name, self.uid)

    def arm_name(self, revision: str) -> str:
        """Name of all that one arm has."""
        return f"{self.name}-{revision}"

    def url(self, revision: str) -> str:
        """Where an arm answers, to others in its namespace."""
        return f"http://{self.arm_name(revision)}:{PORT}"

    def revision_of(self, checkpoint: Checkpoint) -> Revision:
        """The arm that this spec makes of a checkpoint."""
        server = self.spec.server
        image = server.image or self.installation.inference_image
        return Revision(owner=self.uid, checkpoint=checkpoint, image=image, server=server)

    def selector(self, revision: str | None = None) -> dict[str, str]:
        """Labels that find the pods of one arm, or of all."""
        found = {SERVING_LABEL: label_value(self.name), COMPONENT_LABEL: COMPONENT}
        return found if revision is None else {**found, REVISION_LABEL: revision}

    def labels(self, revision: str | None = None) -> dict[str, str]:
        """Labels of a child."""
        return {**self.selector(revision), **recommended_labels(COMPONENT)}

    def child(self, kind: Kind, name: str, revision: str | None = None) -> Json:
        """An object with nothing but its identity."""
        return identity(kind, self.namespace, name, self.labels(revision), self.owner)


def service(context: ServingContext, name: str, revision: str) -> Json:
    """An address of one arm: `<name>`, that clients use, or the arm's own, which never selects another."""
    obj = context.child(SERVICE, name, revision if name != context.name else None)
    obj["spec"] = {
        "type": "ClusterIP",
        "selector": context.selector(revision),
        "ports": [
            {"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}
        ],
    }
    return obj


def rollout_map(
    context: ServingContext, book: Book, routes: Mapping[str, Route], evidence: str | None
) -> Json:
    """`<name>-rollout`: the ledger, and for each arm the route that its servers must have."""
    obj = context.child(CONFIG_MAP, context.config_name)
    annotations = {LEDGER_ANNOTATION: book.to_annotation()}
    if evidence:
        annotations[EVIDENCE_ANNOTATION] = evidence
    obj["metadata"]["annotations"] = annotations
    obj["data"] = {
        # Without defaults, which a server of an earlier release may not know.
        route_key(revision): route.model_copy(update={"generation": book.generation}).model_dump_json(
            by_alias=True, exclude_defaults=True
        )
        for revision, route in sorted(routes.items())
    }
    return obj


def route_key(revision: str) -> str:
    """Under which the ConfigMap holds an arm's route."""
    return f"{revision}.json"


def routes_in(config_map: Json | None) -> dict[str, Route]:
    """The routes that the ConfigMap holds, by arm; for one that can't be read, one that nobody follows."""
    found: dict[str, Route] = {}
    for key, text in sub(config_map, "data").items():
        arm = key.removesuffix(".json")
        try:
            found[arm] = Route.model_validate_json(text)
        except ValidationError:
            found[arm] = Route(salt="unreadable")
    return found


def autoscaler(context: ServingContext, revision: str, least: int) -> Json:
    """An arm's HorizontalPodAutoscaler, which alone then decides how many pods there are above `least`."""
    wanted = context.spec.autoscaling
    if wanted is None:
        raise ValueError("spec.autoscaling is not written")
    metrics: list[Json] = []
    for resource, percent in (("cpu", wanted.cpu_percent), ("memory", wanted.memory_percent)):
        if percent is not None:
            # Of the server alone: a container that others inject may ask for nothing, which spoils the sum.
            target: Json = {"type": "Utilization", "averageUtilization": percent}
            of_server: Json = {"container": CONTAINER, "name": resource, "target": target}
            metrics.append({"type": "ContainerResource", "containerResource": of_server})
    if wanted.requests_per_second is not None:
        target = {"type": "AverageValue", "averageValue": str(wanted.requests_per_second)}
        metrics.append({"type": "Pods", "pods": {"metric": {"name": REQUESTS_METRIC}, "target": target}})
    obj = context.child(AUTOSCALER, context.arm_name(revision), revision)
    obj["spec"] = {
        "scaleTargetRef": {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            "name": context.arm_name(revision),
        },
        "minReplicas": least,
        "maxReplicas": max(least, wanted.max_replicas),
        "metrics": metrics,
        # Up as Kubernetes does by itself: at once, and each 15 s by as many again or four. A server too many
        # costs little; one that comes back fetches its policy first, and one that leaves breaks off memories.
        "behavior": {
            "scaleDown": {
                "stabilizationWindowSeconds": seconds(wanted.scale_down_after),
                "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
            }
        },
    }
    return obj


def disruption_budget(context: ServingContext, revision: str) -> Json:
    """One pod of an arm at a time may be taken by a node's drain."""
    obj = context.child(DISRUPTION_BUDGET, context.arm_name(revision), revision)
    obj["spec"] = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": context.selector(revision)},
    }
    return obj


def network_policy(context: ServingContext) -> Json:
    """Anybody may ask a server; it may leave on TCP, since S3 can be anywhere, and asks the other arm."""
    tcp: Literal["TCP"] = "TCP"
    obj = context.child(NETWORK_POLICY, f"{context.name}-server")
    obj["spec"] = {
        "podSelector": {"matchLabels": context.selector()},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": [{"protocol": tcp, "port": PORT}]}],
        "egress": [
            {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": tcp, "port": 53}]},
            {"ports": [{"protocol": tcp, "port": 1, "endPort": 65535}]},
        ],
    }
    return obj
