"""Deployments that every local cluster has, applied once for each version of their manifest."""

from __future__ import annotations

from pathlib import Path

from localcluster.kindcluster import kubectl, kubectl_json
from localcluster.settings import MANIFESTS, Settings
from localcluster.shell import StepError, answer, run, wait_until
from localcluster.steps import Step, content_hash

MANIFEST_HASH = "ratchet.dev/manifest-hash"
FIELD_MANAGER = "--field-manager=ratchet-localcluster"


def deployed(settings: Settings, namespace: str, name: str, manifest: Path) -> bool:
    """Whether the Deployment is there from this very manifest, and has a ready pod."""
    found = kubectl_json(settings, "--namespace", namespace, "get", "deployment", name)
    if not found:
        return False
    same = found["metadata"].get("annotations", {}).get(MANIFEST_HASH) == content_hash(manifest)
    return same and found["status"].get("readyReplicas", 0) > 0


def deploy(settings: Settings, namespace: str, name: str, manifest: Path, log: Path) -> None:
    run(
        kubectl(
            settings, "apply", "--server-side", "--force-conflicts", FIELD_MANAGER, "--filename", manifest
        ),
        log=log,
    )
    rolled_out = kubectl(
        settings, "--namespace", namespace, "rollout", "status", "--timeout=180s", f"deployment/{name}"
    )
    run(rolled_out, log=log, hint=f"`kubectl -n {namespace} describe pods` tells why the pod does not start.")
    mark = f"{MANIFEST_HASH}={content_hash(manifest)}"
    run(
        kubectl(settings, "--namespace", namespace, "annotate", "--overwrite", "deployment", name, mark),
        log=log,
    )


def dns_step(settings: Settings) -> Step:
    def ready() -> bool:
        found = kubectl_json(settings, "--namespace", "kube-system", "get", "deployment", "coredns")
        return bool(found) and found["status"].get("readyReplicas", 0) > 0

    def wait(log: Path) -> None:
        if not wait_until(ready, seconds=120):
            raise StepError(
                "CoreDNS does not become ready", hint="`kubectl -n kube-system describe pods` tells why."
            )

    return Step("wait for cluster DNS", ready, wait)


def metrics_server_step(settings: Settings) -> Step:
    namespace, name, manifest = "kube-system", "metrics-server", MANIFESTS / "metrics-server.yaml"

    def answers() -> bool:
        nodes = answer(
            kubectl(settings, "--request-timeout=5s", "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"),
            timeout=10,
        )
        return nodes is not None and '"usage"' in nodes

    def make(log: Path) -> None:
        if not deployed(settings, namespace, name, manifest):
            deploy(settings, namespace, name, manifest, log)
        if not wait_until(answers, seconds=90, every=1):
            raise StepError(
                "metrics-server runs but has no metrics",
                hint="`kubectl -n kube-system logs deploy/metrics-server` tells why.",
            )

    return Step("metrics-server", lambda: deployed(settings, namespace, name, manifest) and answers(), make)
