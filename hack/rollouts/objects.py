"""Objects of one namespace as JSON, by kubectl."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

Json = dict[str, Any]


class RunsKubectl(Protocol):
    """Runs kubectl in one namespace; raises where it ends with another code than 0."""

    def __call__(self, *arguments: str, stdin: str | None = None) -> str: ...


@dataclass(frozen=True, slots=True)
class Objects:
    """Those of kubectl's namespace."""

    kubectl: RunsKubectl

    def apply(self, manifest: Json) -> None:
        """Creates or changes one."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))

    def patch(self, kind: str, name: str, changes: Json) -> None:
        """Merges changes into one."""
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(changes))

    def remove(self, kind: str, name: str) -> None:
        """Deletes one, and waits until it is gone with all that it owns."""
        self.kubectl("delete", kind, name, "--cascade=foreground")

    def find(self, kind: str, name: str) -> Json | None:
        """One, or None where there is none."""
        found = self.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found.strip() else None

    def list(self, kind: str, selector: str) -> list[Json]:
        """Those with these labels."""
        return json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]


def is_ready(pod: Json) -> bool:
    """Whether Services send it requests."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
