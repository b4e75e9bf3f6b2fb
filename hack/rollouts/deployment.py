"""A PolicyDeployment of CartPole whose rollouts take seconds, and what its status says."""

from pathlib import Path
from typing import Any

from rollouts.cartpoles import Stored

Json = dict[str, Any]
BUCKET = "ratchet"
STORAGE: Json = {
    "bucket": BUCKET,
    "endpoint": "http://s3.ratchet-s3.svc:9000",
    "secretRef": {"name": "s3-credentials"},
}
# The players' episodes end after so many steps, each of which is worth 1.
LONGEST_EPISODE = 25
BROKEN = Path(__file__).with_name("broken.py")
# On the PYTHONPATH of the servers' image, and empty where no torch was asked for.
LIBRARY = "/opt/ratchet/torch"


def source(policy: Stored) -> Json:
    """A checkpoint by its place and its digest."""
    key = policy.uri.removeprefix("s3://").partition("/")[2]
    return {"type": "Checkpoint", "checkpoint": {"s3": {**STORAGE, "prefix": key}, "digest": policy.digest}}


def manifest(name: str, first: Json, **spec: Any) -> Json:
    """A PolicyDeployment.

    Args:
        name: of it, and of the Service that clients use.
        first: source of its first policy.
        spec: fields that replace those written here.

    """
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "PolicyDeployment",
        "metadata": {"name": name},
        "spec": {
            "source": first,
            "replicas": 2,
            "server": {
                "resources": {
                    "requests": {"cpu": "100m", "memory": "64Mi"},
                    "limits": {"memory": "384Mi"},
                }
            },
            "strategy": {
                "type": "Canary",
                "canary": {
                    "steps": [
                        {"weight": 25, "minDuration": "5s"},
                        {"weight": 50, "minDuration": "5s"},
                    ]
                },
                "bake": "5s",
                "progressDeadline": "120s",
                "cooldown": "1s",
            },
            "guards": {
                # Pods that share two cores with a whole cluster are late now and then, good ones too: that
                # stable answers for them is no reason. And it is the median that a slow policy moves.
                "errorRate": {"minimum": 50},
                "fallbackRate": {"minimum": 50, "tolerated": 0.5},
                "latency": {"quantile": 0.5, "maxRatio": 2.5, "minimum": 50},
                "episodeReturn": {
                    "enabled": True,
                    "minimum": 5,
                    "maxRelativeDrop": 0.2,
                    "range": {"low": 0, "high": LONGEST_EPISODE},
                    "horizon": "5s",
                },
            },
            **spec,
        },
    }


def fault(name: str, share: float) -> Json:
    """A ConfigMap with a bug that this share of the requests meets: see `broken.py`."""
    data = {"sitecustomize.py": BROKEN.read_text(), "share": str(share)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def with_fault(name: str) -> list[Json]:
    """The volumes of a server that has it."""
    return [{"name": "library", "mountPath": LIBRARY, "configMap": name}]


def status(deployment: Json | None) -> Json:
    """Its status, empty before there is one."""
    return (deployment or {}).get("status") or {}


def stable(deployment: Json | None) -> str:
    """Digest of the checkpoint that serves; empty before there is one."""
    arm: Json = status(deployment).get("stable") or {}
    return arm.get("digest", "")


def ending(deployment: Json | None, digest: str) -> Json | None:
    """How the last trial of a checkpoint ended: an entry of the status' history; None before it has."""
    history: list[Json] = status(deployment).get("history", [])
    return next((past for past in reversed(history) if past["digest"] == digest), None)
