"""The two that `rollout.py` sets side by side, each with the same servers: how it serves, tries and gives up.

The servers are Ratchet's, for both: same image, same policy, same fault (`hack/rollouts/broken.py`). Argo's
are pods of a Rollout behind one Service, where the number of pods is the split, as without a mesh.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol, Self

from argo_rollouts import APP, VERSION
from rollouts import deployment
from rollouts.cartpoles import Stored
from rollouts.cluster import Kubectl, eventually
from rollouts.objects import Objects

Json = dict[str, Any]
BROKEN = Path(__file__).resolve().parent.parent / "hack" / "rollouts" / "broken.py"
IMAGE = "ratchet-inference:dev"
# On the PYTHONPATH of the image, and empty where no torch was asked for.
LIBRARY = "/opt/ratchet/torch"
CREDENTIALS = "/var/run/ratchet/s3"
RESOURCES: Json = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "384Mi"}}
THRESHOLD = 0.01
START_SECONDS = 240.0  # for many servers at once, on a small machine


@dataclass(frozen=True, slots=True)
class Release:
    """What can be served.

    Attributes:
        policy: of its own for each release, so that each can be told from all before.
        library: ConfigMap with the fault that it has, if any.

    """

    policy: Stored
    library: str = ""


class Contestant(Protocol):
    """One way to roll out."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def remove(self) -> None:
        """Leaves nothing of it, its pods included."""
        ...

    def serve(self, release: Release) -> None:
        """Gives a release to everybody, and waits until it has all its servers and nothing else is tried."""
        ...

    def offer(self, release: Release) -> None:
        """Lets half of the requests try it."""
        ...

    def ended(self, release: Release) -> bool:
        """Whether it was taken out."""
        ...

    def canaries(self, release: Release) -> list[Json]:
        """Its pods, as long as there are any."""
        ...


def library(name: str, share: float) -> Json:
    """A ConfigMap with a fault that this share of the requests meets."""
    data = {"sitecustomize.py": BROKEN.read_text(), "share": str(share)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


@dataclass(frozen=True, slots=True)
class Ratchet:
    """A PolicyDeployment with the guards that it has by default.

    Args:
        seconds: that the canary keeps its half, if it is not taken out.
        replicas: of the arm that serves.

    """

    objects: Objects
    name: str = "ratchet"
    seconds: int = 30
    replicas: int = 2

    @property
    def title(self) -> str:
        """For people."""
        return "Ratchet"

    def remove(self) -> None:
        """See Contestant."""
        self.objects.remove("policydeployment", self.name)

    def serve(self, release: Release) -> None:
        """See Contestant."""
        step = {"weight": 50, "minDuration": f"{self.seconds}s"}
        strategy = {"type": "Canary", "canary": {"steps": [step]}, "bake": "2s", "cooldown": "1s"}
        if not self.objects.find("policydeployment", self.name):
            source = deployment.source(release.policy)
            more: Json = {"strategy": strategy, "replicas": self.replicas, "server": self._server(release)}
            self.objects.apply(deployment.manifest(self.name, source, guards={}, **more))
        else:
            self.offer(release)
        eventually("it serves", lambda: self._serves(release), START_SECONDS)

    def offer(self, release: Release) -> None:
        """See Contestant."""
        spec = {"source": deployment.source(release.policy), "server": self._server(release)}
        self.objects.patch("policydeployment", self.name, {"spec": spec})

    def ended(self, release: Release) -> bool:
        """See Contestant."""
        past = deployment.ending(self._get(), release.policy.digest)
        return past is not None and past["outcome"] != "Promoted"

    def why(self, release: Release) -> str:
        """In the operator's words."""
        return (deployment.ending(self._get(), release.policy.digest) or {}).get("message", "")

    def canaries(self, release: Release) -> list[Json]:
        """See Contestant."""
        pods = self.objects.list("pods", f"ratchet.dev/policy-deployment={self.name}")
        wanted = f"--digest={release.policy.digest}"
        return [pod for pod in pods if wanted in pod["spec"]["containers"][0]["args"]]

    def _get(self) -> Json | None:
        return self.objects.find("policydeployment", self.name)

    def _serves(self, release: Release) -> bool:
        status = deployment.status(found := self._get())
        arm: Json = status.get("stable") or {}
        ready = arm.get("ready", 0)
        is_it = deployment.stable(found) == release.policy.digest
        return is_it and not status.get("trial") and ready >= self.replicas

    def _server(self, release: Release) -> Json:
        volumes = [{"name": "library", "mountPath": LIBRARY, "configMap": release.library}]
        return {"resources": RESOURCES, "volumes": volumes if release.library else []}


@dataclass(frozen=True, slots=True)
class Argo:
    """A Rollout that is judged by Prometheus while half of its pods are the canary's.

    Args:
        prometheus: address.
        interval: seconds between two looks.
        window: seconds that a look goes back.
        unavailable: pods that may be missing of those wanted; empty for Argo's default, a quarter.
        replicas: of both arms together.
        watched: abort by analysis.

    """

    objects: Objects
    prometheus: str
    name: str
    interval: int = 1
    window: int = 5
    unavailable: str = ""
    replicas: int = 4
    watched: bool = True

    @property
    def title(self) -> str:
        """For people."""
        unavailable = f", maxUnavailable {self.unavailable}" if self.unavailable else ""
        return f"Argo, each {self.interval} s over {self.window} s{unavailable}"

    def remove(self) -> None:
        """See Contestant."""
        self.objects.remove("rollouts.argoproj.io", self.name)

    def serve(self, release: Release) -> None:
        """See Contestant."""
        if not self.objects.find("rollouts.argoproj.io", self.name):
            self.objects.apply(analysis(self.name, self.prometheus, self.interval, self.window))
            self.objects.apply(self._service())
            self.objects.apply(self._rollout(release, "stable"))
        else:
            self._change(release, "stable")
        eventually("it serves", self._serves, START_SECONDS)

    def offer(self, release: Release) -> None:
        """See Contestant."""
        self._change(release, "canary")

    def ended(self, release: Release) -> bool:
        """See Contestant."""
        return bool(self._status().get("abort"))

    def canaries(self, release: Release) -> list[Json]:
        """See Contestant."""
        return self.objects.list("pods", f"{APP}={self.name},{VERSION}=canary")

    def _status(self) -> Json:
        return (self.objects.find("rollouts.argoproj.io", self.name) or {}).get("status") or {}

    def _serves(self) -> bool:
        status = self._status()
        ready = status.get("availableReplicas", 0) >= self.replicas and not status.get("abort")
        return ready and status.get("phase") == "Healthy"

    def _change(self, release: Release, version: str) -> None:
        template = self._rollout(release, version)["spec"]["template"]
        self.objects.patch("rollouts.argoproj.io", self.name, {"spec": {"template": template}})

    def _service(self) -> Json:
        spec = {"selector": {APP: self.name}, "ports": [{"port": 8080, "targetPort": 8080}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name}, "spec": spec}

    def _rollout(self, release: Release, version: str) -> Json:
        canary: Json = {"steps": [{"setWeight": 50}, {"pause": {}}]}
        if self.watched:
            canary["analysis"] = {"templates": [{"templateName": self.name}]}
        if self.unavailable:
            canary["maxUnavailable"] = self.unavailable
        labels = {APP: self.name, VERSION: version}
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": self.name},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {APP: self.name}},
                "strategy": {"canary": canary},
                "template": {"metadata": {"labels": labels}, "spec": _pod(release)},
            },
        }


def analysis(name: str, prometheus: str, interval: int, window: int) -> Json:
    """An AnalysisTemplate that allows no look at which more than one in a hundred of the canary's failed."""
    asked, failed = (
        f'sum(increase({what}_total{{{APP}="{{{{args.name}}}}",{VERSION}="canary"}}[{window}s]))'
        for what in ("asked", "failed")
    )
    metric: Json = {
        "name": "errors",
        "interval": f"{interval}s",
        # Before there are requests the query has no value, or 0/0: that is nothing bad.
        "successCondition": f"isNaN(result[0]) || result[0] <= {THRESHOLD}",
        "provider": {"prometheus": {"address": prometheus, "query": f"({failed} / {asked}) or vector(0)"}},
    }
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": {"name": name},
        "spec": {"args": [{"name": "name", "value": name}], "metrics": [metric]},
    }


def _pod(release: Release) -> Json:
    """A server as Ratchet starts it, without route and orders."""
    storage = deployment.STORAGE
    arguments = [
        f"--policy={release.policy.uri}",
        f"--digest={release.policy.digest}",
        f"--s3-endpoint={storage['endpoint']}",
        "--drain-delay-seconds=5",
    ]
    volumes: list[Json] = [{"name": "s3", "secret": {"secretName": storage["secretRef"]["name"]}}]
    mounts: list[Json] = [{"name": "s3", "mountPath": CREDENTIALS, "readOnly": True}]
    if release.library:
        volumes.append({"name": "library", "configMap": {"name": release.library}})
        mounts.append({"name": "library", "mountPath": LIBRARY, "readOnly": True})
    return {
        # A Service called `ratchet` would give RATCHET_PORT another meaning.
        "enableServiceLinks": False,
        "containers": [
            {
                "name": "server",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": arguments,
                "env": [{"name": "RATCHET_S3_CREDENTIALS_DIR", "value": CREDENTIALS}],
                "ports": [{"containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
                "resources": RESOURCES,
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


class Overheard:
    """What broken servers say of the requests that they get, until they end."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._command = ["kubectl", "--namespace", kubectl.namespace, "logs", "--follow"]
        self._files: dict[str, IO[str]] = {}
        self._followers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for follower in self._followers:
            follower.terminate()
            follower.wait(10)
        for file in self._files.values():
            file.close()

    def listen(self, pods: list[Json]) -> None:
        """To those that run, from their beginning."""
        for pod in pods:
            name = pod["metadata"]["name"]
            if name not in self._files and pod["status"].get("phase") == "Running":
                file = self._files[name] = TemporaryFile("w+")  # noqa: SIM115 - closed at the end
                command = [*self._command, name]
                self._followers.append(subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL))

    def asked(self) -> tuple[int, float, float]:
        """Requests that they got, when the first, and when the last; seconds since 1970."""
        for follower in self._followers:
            follower.wait(30)
        times: list[float] = []
        number = 0
        for file in self._files.values():
            file.seek(0)
            for words in (line.split() for line in file):
                if len(words) == 3 and words[0] == "asked":
                    number += int(words[1])
                    times.append(float(words[2]))
        return number, min(times, default=0.0), max(times, default=0.0)
