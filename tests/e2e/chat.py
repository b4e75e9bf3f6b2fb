"""A chat in the cluster that Slack's messages can be posted to, and that keeps each post it gets."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from chatserver import SILENT as SILENT
from cluster import Json, Namespace, condition, eventually

SCRIPT = Path(__file__).with_name("chatserver.py")
NAME = "chat"
SECRET = "chat-url"


@dataclass(frozen=True, slots=True)
class Chat:
    """A pod with `chatserver.py`, its Service, and the Secret that names it."""

    namespace: Namespace

    def open(self) -> None:
        """Starts it; posts are answered."""
        metadata = {"name": NAME, "labels": {"app.kubernetes.io/name": NAME}}
        self.namespace.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata,
                "data": {SCRIPT.name: SCRIPT.read_text()},
            }
        )
        self.namespace.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"selector": metadata["labels"], "ports": [{"port": 8080}]},
            }
        )
        self.namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": POD})
        self.is_at("/")
        eventually(
            "the chat listens",
            lambda: condition(self.namespace.find("pod", NAME), "Ready").get("status") == "True",
        )

    def is_at(self, path: str) -> None:
        """Writes into the Secret where posts go to."""
        url = f"http://{NAME}.{self.namespace.name}:8080{path}"
        data = {"WEBHOOK_URL": base64.b64encode(url.encode()).decode()}
        self.namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data}
        )

    def posts(self) -> list[Json]:
        """All that came, answered or not: `path`, `type` and `body` of each."""
        return [json.loads(line) for line in self.namespace.logs(NAME).splitlines()]


POD: Json = {
    "automountServiceAccountToken": False,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "containers": [
        {
            "name": NAME,
            "image": "ratchet-rollout:dev",
            "command": ["python", f"/chat/{SCRIPT.name}"],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "program", "mountPath": "/chat"}],
        }
    ],
    "volumes": [{"name": "program", "configMap": {"name": NAME}}],
}
