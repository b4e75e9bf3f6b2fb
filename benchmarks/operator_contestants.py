"""The two operators of `operator_latency.py` as processes of this machine, and what each is asked to make.

A RayCluster here is a head and two workers: one Service and three pods, which KubeRay makes itself. An
RLTrainingJob is a trainer, a managed Redis and two workers: a Secret, a ConfigMap, a Service, two
Deployments, a RolloutPool and a ReplicaSet of workers; the controller manager makes their four pods.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "hack"))

from localcluster import gomods, tools  # noqa: E402
from localcluster.gomods import KUBERAY  # noqa: E402
from localcluster.settings import Settings  # noqa: E402
from localcluster.simulated import RequestError, SimulatedCluster  # noqa: E402
from localcluster.steps import run_steps  # noqa: E402

Json = dict[str, Any]

NAMESPACE = "bench"
NODES = 4
FAST = ["--kube-api-qps=500", "--kube-api-burst=1000"]
"""The controllers of Kubernetes are not what is measured, and their own limits on requests would be."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Contestant:
    """One operator.

    Attributes:
        user: who it is in the audit log.
        api: path of the collection of its objects in the benchmark's namespace.
        children: how many objects of each plural it makes for one of its objects.
        changed: the plural of what it writes when `replicas` changes.
        pods: of one of its objects, whoever makes them.

    """

    name: str
    user: str
    api: str
    children: Mapping[str, int]
    changed: str
    pods: int
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def manifest(self, name: str) -> Json:
        """One object."""
        return ray_cluster(name) if self.name == "KubeRay" else training_job(name)

    def replicas(self, name: str, count: int) -> tuple[str, Json]:
        """Path and merge patch that ask for so many workers of an object. Ours are asked of its RolloutPool,
        as `kubectl scale` does: the job's own number is also the learner's batch, and starts a new trainer.
        """
        if self.name == "KubeRay":
            return f"{self.api}/{name}", {"spec": {"workerGroupSpecs": [_workers(count)]}}
        pools = f"/apis/ratchet.dev/v1alpha1/namespaces/{NAMESPACE}/rolloutpools"
        return f"{pools}/{name}-rollouts", {"spec": {"replicas": count}}

    def start(self, **environment: str) -> None:
        """Start the process."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Stop it in order."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        return cpu_seconds(self._pid())

    def memory(self) -> int:
        """Resident set in bytes."""
        status = Path(f"/proc/{self._pid()}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def _pid(self) -> int:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.name} does not run: see {self.log}")
        return self.process.pid


def cpu_seconds(pid: int) -> float:
    """CPU time that a process of this machine has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextlib.contextmanager
def contest(audit_policy: str, alone: bool) -> Generator[tuple[SimulatedCluster, list[Contestant]]]:
    """A control plane with KWOK's nodes, and both operators at work on it, or ours alone; ours is last."""
    settings = Settings.from_environment()
    settings.prepare()
    needed = ["helm"] if alone else ["helm", "kuberay"]
    run_steps([tools.step(name, settings) for name in needed], settings.logs)
    with SimulatedCluster(
        audit_policy=audit_policy,
        kwok_nodes=NODES,
        arguments={"kube-controller-manager": FAST, "kube-scheduler": FAST},
        settings=settings,
    ) as cluster:
        contestants = [] if alone else [install_kuberay(cluster, settings)]
        contestants.append(install_ratchet(cluster, settings))
        try:
            for who in contestants:
                who.start()
            yield cluster, contestants
        finally:
            for who in contestants:
                who.stop()


def training_job(name: str) -> Json:
    """An RLTrainingJob with two workers."""
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "RLTrainingJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "environment": {"id": "CartPole-v1", "vectorSize": 16},
            "algorithm": {"type": "PPO", "ppo": {"rolloutSteps": 64, "learningRate": 0.001}},
            "checkpoint": {"s3": {"bucket": "ratchet", "endpoint": "http://s3.s3.svc:9000"}},
            "rollouts": {"replicas": 2, "minReplicas": 1, "maxReplicas": 8},
            "stop": {"maxSteps": 1000000},
        },
    }


def ray_cluster(name: str) -> Json:
    """A RayCluster with a head and two workers."""
    head: Json = {"rayStartParams": {}, "template": _ray_pod("ray-head")}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"rayVersion": "2.46.0", "headGroupSpec": head, "workerGroupSpecs": [_workers(2)]},
    }


def _workers(replicas: int) -> Json:
    return {
        "groupName": "workers",
        "replicas": replicas,
        "minReplicas": 1,
        "maxReplicas": 8,
        "rayStartParams": {},
        "template": _ray_pod("ray-worker"),
    }


def _ray_pod(container: str) -> Json:
    amount = {"cpu": "100m", "memory": "256Mi"}
    resources = {"requests": amount, "limits": amount}
    return {
        "spec": {
            "containers": [{"name": container, "image": "rayproject/ray:2.46.0", "resources": resources}]
        }
    }


def install_kuberay(cluster: SimulatedCluster, settings: Settings) -> Contestant:
    """CRDs and an administrator's ServiceAccount for KubeRay's operator; it runs with its defaults."""
    source = gomods.module_folder(KUBERAY.module)
    crds = sorted((source / "config" / "crd" / "bases").glob("*.yaml"))
    _apply(cluster, [yaml.safe_load(path.read_text()) for path in crds])
    name, namespace = "kuberay-operator", "kuberay"
    _apply(
        cluster,
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": namespace},
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "cluster-admin",
                },
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            },
        ],
    )
    return Contestant(
        "KubeRay",
        f"system:serviceaccount:{namespace}:{name}",
        f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters",
        {"services": 1, "pods": 3},
        "pods",
        3,
        [
            str(KUBERAY.path(settings)),
            f"--leader-election-namespace={namespace}",
            "--metrics-addr=127.0.0.1:18081",
            "--health-probe-bind-address=127.0.0.1:18082",
        ],
        {"KUBECONFIG": str(cluster.service_account_kubeconfig(namespace, name))},
        cluster.folder / "kuberay.log",
    )


def install_ratchet(cluster: SimulatedCluster, settings: Settings) -> Contestant:
    """CRDs, and a ServiceAccount with exactly the chart's role; the operator runs with its defaults."""
    namespace = "ratchet-system"
    chart = str(ROOT / "charts" / "ratchet")
    rendered = subprocess.run(
        [tools.path("helm", settings), "template", "ratchet", chart, f"--namespace={namespace}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wanted = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    objects = [obj for obj in yaml.safe_load_all(rendered) if obj and obj["kind"] in wanted]
    crds = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    spaces: list[Json] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        for name in (namespace, NAMESPACE)
    ]
    _apply(cluster, [*crds, *spaces, *objects])
    account = next(obj["metadata"]["name"] for obj in objects if obj["kind"] == "ServiceAccount")
    return Contestant(
        "Ratchet",
        f"system:serviceaccount:{namespace}:{account}",
        f"/apis/ratchet.dev/v1alpha1/namespaces/{NAMESPACE}/rltrainingjobs",
        {
            "secrets": 1,
            "configmaps": 1,
            "services": 1,
            "deployments": 2,
            "rolloutpools": 1,
            "replicasets": 1,
        },
        "replicasets",
        4,
        [str(Path(sys.executable).parent / "ratchet-operator")],
        {
            "KUBECONFIG": str(cluster.service_account_kubeconfig(namespace, account)),
            "POD_NAMESPACE": namespace,
            "RATCHET_PORT": "18080",
        },
        cluster.folder / "ratchet.log",
    )


_PLURAL = {
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
}


def _apply(cluster: SimulatedCluster, objects: list[Json]) -> None:
    for obj in objects:
        metadata = obj["metadata"]
        path = _PLURAL[obj["kind"]].format(metadata.get("namespace", "default"))
        cluster.request(
            "PATCH",
            f"{path}/{metadata['name']}?fieldManager=benchmark&force=true",
            obj,
            "application/apply-patch+yaml",
        )
        if obj["kind"] == "CustomResourceDefinition":
            _wait_for_crd(cluster, obj)


def _wait_for_crd(cluster: SimulatedCluster, crd: Json) -> None:
    spec = crd["spec"]
    path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}?limit=1"
    deadline = time.monotonic() + 30
    while True:
        try:
            cluster.request("GET", path)
        except RequestError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
