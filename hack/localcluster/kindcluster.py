"""The kind cluster: made, healed after its engine was restarted, and deleted."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import engine, tools
from localcluster.nodeimage import NodeImage
from localcluster.settings import APISERVER, Settings
from localcluster.shell import Argument, StepError, answer, run, succeeds, wait_until
from localcluster.steps import content_hash

READY_SECONDS = 120
POD_RANGE = "10.244.0.0/16"


@dataclass(frozen=True)
class NodeContainer:
    name: str
    running: bool
    started: str
    """RFC 3339, UTC."""
    mounted: frozenset[str]
    """Names of the machine's folders that it mounts."""


def kubectl(settings: Settings, *words: Argument) -> list[Argument]:
    return [tools.path("kubectl", settings), "--kubeconfig", settings.kubeconfig, *words]


def kubectl_json(settings: Settings, *words: Argument) -> Any | None:
    """What `kubectl … -o json` answers, or None where it fails or the object does not exist."""
    printed = answer(
        kubectl(settings, "--request-timeout=10s", *words, "--output=json", "--ignore-not-found"), timeout=20
    )
    return json.loads(printed) if printed else None


def containers(settings: Settings) -> list[NodeContainer]:
    """The cluster's node containers, the control plane first."""
    names = answer(
        ["docker", "ps", "--all", "--quiet", "--filter", f"label=io.x-k8s.kind.cluster={settings.cluster}"]
    )
    if not names or not names.split():
        return []
    inspected = json.loads(answer(["docker", "inspect", *names.split()]) or "[]")
    found = [
        NodeContainer(
            one["Name"].lstrip("/"),
            one["State"]["Running"],
            one["State"]["StartedAt"],
            frozenset(Path(mount["Source"]).name for mount in one["Mounts"]),
        )
        for one in inspected
    ]
    return sorted(found, key=lambda node: ("control-plane" not in node.name, node.name))


def healthy(settings: Settings, nodes: int) -> bool:
    """At least so many nodes exist and run, and each has reported ready since its container started."""
    found = containers(settings)
    if not usable(settings, found, nodes) or not all(node.running for node in found):
        return False
    if not settings.kubeconfig.exists():
        return False
    listed = kubectl_json(settings, "get", "nodes")
    reported = {item["metadata"]["name"]: _ready_since(item) for item in listed["items"]} if listed else {}
    # The API gives whole seconds, the engine nanoseconds: 19 characters reach to the seconds.
    return all((reported.get(node.name) or "") >= node.started[:19] for node in found)


def _ready_since(node: Any) -> str | None:
    """When the node last reported that it is ready; None where it is not."""
    for condition in node["status"].get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] == "True":
            return condition["lastHeartbeatTime"]
    return None


def usable(settings: Settings, found: list[NodeContainer], nodes: int) -> bool:
    """Whether these are enough nodes, and the API server was set up as it would be today."""
    return 0 < len(found) >= nodes and _apiserver_folder(settings).name in found[0].mounted


def _apiserver_folder(settings: Settings) -> Path:
    """Where the control plane mounts its settings from; the name tells which they are."""
    return settings.home / f"apiserver-{content_hash(APISERVER)}"


def up(settings: Settings, image: NodeImage, nodes: int, log: Path) -> None:
    """Heals the cluster where it exists with at least so many nodes and today's settings, else makes it anew.

    Raises:
        StepError: the new cluster's nodes do not become ready.

    """
    if not _heal(settings, nodes, log):
        if containers(settings):
            delete(settings, log)
        create(settings, image, nodes, log)
        if not wait_until(lambda: healthy(settings, nodes), seconds=READY_SECONDS):
            raise StepError(
                "the cluster's nodes do not become ready",
                hint="`docker logs` and `journalctl` in the node tell more.",
            )


def _heal(settings: Settings, nodes: int, log: Path) -> bool:
    """Starts what stopped and waits. False where there is nothing to heal, or it does not come back."""
    found = containers(settings)
    if not usable(settings, found, nodes):
        return False
    stopped = [node.name for node in found if not node.running]
    if stopped and not succeeds(["docker", "start", *stopped]):
        return False
    if not settings.kubeconfig.exists():
        _export_kubeconfig(settings, log)
    return wait_until(lambda: healthy(settings, nodes), seconds=READY_SECONDS)


def create(settings: Settings, image: NodeImage, nodes: int, log: Path) -> None:
    folder = _apiserver_folder(settings)
    shutil.copytree(APISERVER, folder, dirs_exist_ok=True)
    config = json.dumps(
        cluster_config(
            settings.cluster, nodes, folder, own_network=image.built, cgroup_v1=engine.uses_cgroup_v1()
        )
    )
    words: list[Argument] = [
        tools.path("kind", settings),
        "create",
        "cluster",
        "--config=-",
        "--kubeconfig",
        settings.kubeconfig,
    ]
    run([*words, *([f"--image={image.name}"] if image.name else [])], stdin=config, log=log)
    settings.kubeconfig.chmod(0o600)


def cluster_config(
    name: str, nodes: int, apiserver: Path, *, own_network: bool, cgroup_v1: bool
) -> dict[str, Any]:
    """Kind's configuration. The control plane takes pods too, also beside workers."""
    mounted = "/etc/ratchet/apiserver"
    # A patch of the static pod works with each version of kubeadm's API, unlike extraArgs.
    patches: list[dict[str, Any]] = [{"kind": "InitConfiguration", "patches": {"directory": mounted}}]
    # kind takes the taint off a lone control plane itself, and fails where it finds none.
    if nodes > 1:
        patches.append({"kind": "InitConfiguration", "nodeRegistration": {"taints": []}})
    if cgroup_v1:
        patches.append({"kind": "KubeletConfiguration", "failCgroupV1": False})
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": name,
        "networking": {"podSubnet": POD_RANGE, "disableDefaultCNI": own_network},
        "kubeadmConfigPatches": [json.dumps(patch) for patch in patches],
        "nodes": [
            {
                "role": "control-plane",
                "extraMounts": [
                    {"hostPath": str(apiserver), "containerPath": mounted, "readOnly": True},
                ],
            },
            *({"role": "worker"} for _ in range(nodes - 1)),
        ],
    }


def delete(settings: Settings, log: Path) -> None:
    run(
        [
            tools.path("kind", settings),
            "delete",
            "cluster",
            f"--name={settings.cluster}",
            "--kubeconfig",
            settings.kubeconfig,
        ],
        log=log,
    )
    settings.kubeconfig.unlink(missing_ok=True)


def _export_kubeconfig(settings: Settings, log: Path) -> None:
    run(
        [
            tools.path("kind", settings),
            "export",
            "kubeconfig",
            f"--name={settings.cluster}",
            "--kubeconfig",
            settings.kubeconfig,
        ],
        log=log,
    )


def has_own_network(settings: Settings) -> bool:
    """Whether the cluster is of a built node image: its nodes then need routes to each other's pods."""
    found = containers(settings)
    return bool(found) and not succeeds(
        ["docker", "exec", found[0].name, "test", "-s", "/kind/manifests/default-cni.yaml"]
    )


def _routes(settings: Settings) -> list[tuple[str, str, str]]:
    """(node, pod range of another node, that node's address) for each pair of nodes."""
    listed = kubectl_json(settings, "get", "nodes")
    nodes = [
        (
            item["metadata"]["name"],
            item["spec"]["podCIDR"],
            next(
                address["address"]
                for address in item["status"]["addresses"]
                if address["type"] == "InternalIP"
            ),
        )
        for item in (listed["items"] if listed else ())
    ]
    return [(node, pods, address) for node, _, _ in nodes for other, pods, address in nodes if other != node]


def routes_set(settings: Settings) -> bool:
    if len(containers(settings)) < 2 or not has_own_network(settings):
        return True
    return all(
        f"via {address}" in (answer(["docker", "exec", node, "ip", "route", "show", pods]) or "")
        for node, pods, address in _routes(settings)
    )


def set_routes(settings: Settings, log: Path) -> None:
    for node, pods, address in _routes(settings):
        run(["docker", "exec", node, "ip", "route", "replace", pods, "via", address], log=log)
