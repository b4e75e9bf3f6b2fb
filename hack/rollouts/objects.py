"""Objects of one namespace as JSON, by kubectl."""

import json
from dataclasses import dataclass
from typing import Any

from rollouts.cluster import Kubectl

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Objects:
    """Those of kubectl's namespace."""

    kubectl: Kubectl

    def apply(self, manifest: Json) -> None:
        """Creates or changes one."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))

    def patch(self, kind: str, name: str, changes: Json) -> None:
        """Merges changes into one."""
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(changes))

    def find(self, kind: str, name: str) -> Json | None:
        """One, or None where there is none."""
        found = self.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found.strip() else None

    def list(self, kind: str, selector: str) -> list[Json]:
        """Those with these labels."""
        return json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
