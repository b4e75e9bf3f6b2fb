"""Those who ask, as a pod in the cluster, and what they have seen so far."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollouts.deployment import LONGEST_EPISODE
from rollouts.objects import Objects, RunsKubectl

Json = dict[str, Any]
PLAYERS = Path(__file__).with_name("players.py")
LABEL = "app.kubernetes.io/name=players"


@dataclass(frozen=True, slots=True)
class Audience:
    """Players of one PolicyDeployment, or another program that asks a Service and counts.

    Args:
        kubectl: in the namespace of the Service.
        deployment: name of the PolicyDeployment, and of the Service.
        program: what runs; prints a line of JSON each second.
        flags: that it always gets.
        name: of those who ask, where a Service has others beside them.

    """

    kubectl: RunsKubectl
    deployment: str
    image: str = "ratchet-rollout:dev"
    program: Path = PLAYERS
    flags: tuple[str, ...] = (f"--steps={LONGEST_EPISODE}",)
    name: str = "players"

    @property
    def pod(self) -> str:
        """Name of the pod, and of the ConfigMap with its program."""
        return f"{self.deployment}-{self.name}"

    def start(self, *flags: str) -> None:
        """Starts them, with flags of the program; those who are still there are replaced."""
        self.stop()
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.pod},
            "data": {self.program.name: self.program.read_text()},
        }
        for manifest in (config, self._manifest(*flags)):
            Objects(self.kubectl).apply(manifest)

    def stop(self) -> None:
        """Removes them."""
        self.kubectl("delete", "pod", self.pod, "--ignore-not-found", "--wait", "--grace-period=1")

    def report(self) -> Json | None:
        """The latest line of `players.Report`, at most a second old; None before the first."""
        phase = self.kubectl("get", "pod", self.pod, "-o", "jsonpath={.status.phase}")
        if phase == "Pending":
            return None
        lines = self.kubectl("logs", self.pod, "--tail=1").splitlines()
        if phase == "Failed":
            raise RuntimeError(f"the players ended: {lines}")
        return json.loads(lines[0]) if lines else None

    def end(self, eventually: Callable[[str, Callable[[], Json | None]], Json]) -> Json:
        """The last report, once what was asked is answered.

        Args:
            eventually: what to wait for in words, and what gives it or None.

        """
        self.kubectl("exec", self.pod, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
        return eventually(
            "the players end", lambda: (last := self.report()) and (last if last["ended"] else None)
        )

    def _manifest(self, *flags: str) -> Json:
        name, _, value = LABEL.partition("=")
        url = f"http://{self.deployment}:8080"
        command = ["python", f"/players/{self.program.name}", f"--url={url}", *self.flags, *flags]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.pod, "labels": {name: value}},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 10001,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "players",
                        "image": self.image,
                        "command": command,
                        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
                        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [{"name": "program", "mountPath": "/players"}],
                    }
                ],
                "volumes": [{"name": "program", "configMap": {"name": self.pod}}],
            },
        }
