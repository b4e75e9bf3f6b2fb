"""What there is of a PolicyDeployment, without what counts, dates, or is drawn."""

import json

from kubelet import Api
from lives import State
from ratchet_operator.build.serving import EVIDENCE_ANNOTATION
from ratchet_operator.drift import WANTED_HASH
from ratchet_operator.kinds import (
    CONFIG_MAP,
    POLICY_DEPLOYMENT,
    SECRET,
    SERVICE,
    SERVING_LABEL,
    Json,
    Kind,
    annotations_of,
    controller_of,
    meta,
    name_of,
    spec_of,
    sub,
)
from ratchet_operator.ledger import LEDGER_ANNOTATION
from ratchet_operator.serving import CHILDREN

PASSING = (WANTED_HASH, LEDGER_ANNOTATION, EVIDENCE_ANNOTATION, "deployment.kubernetes.io/revision")
REMEMBERED = ("accepted", "revisions", "routed", "gateway")


async def children(api: Api, namespace: str) -> State:
    """Every object that the operator has made, by kind and name."""
    return {
        f"{kind.kind}/{name_of(obj)}": _essence(kind, obj)
        for kind in (*CHILDREN, CONFIG_MAP, SECRET)
        for obj in await api.list(kind.path(namespace), SERVING_LABEL)
        # Kubernetes makes EndpointSlices, and labels them as their Service is.
        if (controller_of(obj) or {}).get("kind") == POLICY_DEPLOYMENT.kind
    }


def ledger_of(config_map: Json) -> Json:
    """What a PolicyDeployment's ConfigMap remembers."""
    return json.loads(annotations_of(config_map).get(LEDGER_ANNOTATION, "{}"))


def _essence(kind: Kind, obj: Json) -> Json:
    about = {
        "labels": meta(obj).get("labels"),
        "annotations": {key: text for key, text in annotations_of(obj).items() if key not in PASSING},
        "owners": meta(obj).get("ownerReferences"),
        "deleting": "deletionTimestamp" in meta(obj),
    }
    essence = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
    if kind is SECRET:
        essence = {"keys": sorted(obj["data"])}
    if kind is SERVICE:
        essence["spec"] = {k: v for k, v in spec_of(obj).items() if k not in ("clusterIP", "clusterIPs")}
    if kind is CONFIG_MAP:
        routes = {key: json.loads(text) for key, text in sub(obj, "data").items()}
        essence = {"routes": {key: {**route, "generation": None} for key, route in routes.items()}}
        ledger = ledger_of(obj)
        trial = sub(ledger, "state", "trial")
        essence["ledger"] = {key: ledger.get(key) for key in REMEMBERED}
        essence["trial"] = {key: trial.get(key) for key in ("digest", "phase", "stage", "weight", "paused")}
    return {**about, **essence}
