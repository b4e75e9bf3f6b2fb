"""Where things are kept and what they are called, read once from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
MANIFESTS = PACKAGE / "manifests"
DOCKERFILES = PACKAGE / "dockerfiles"
GOMODS = PACKAGE / "gomods"
APISERVER = PACKAGE / "apiserver"
RUNTIME_WRAPPER = PACKAGE / "runtime" / "bounded-runc"


@dataclass(frozen=True)
class Settings:
    """One machine's local cluster."""

    home: Path
    """Everything this package keeps outside Docker: tools, logs, the kubeconfig."""
    cluster: str
    repository: Path

    @property
    def kubeconfig(self) -> Path:
        return self.home / "kubeconfig"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def products(self) -> Path:
        """Built programs, one folder for each content hash."""
        return self.home / "products"

    @property
    def bin(self) -> Path:
        """Links to the programs a person calls by name."""
        return self.home / "bin"

    @property
    def build_folder(self) -> Path:
        """The git-ignored folder through which Dockerfiles get what a build needs from the machine."""
        return self.repository / ".build"

    @classmethod
    def from_environment(cls) -> Settings:
        home = os.environ.get("RATCHET_HOME") or "~/.cache/ratchet"
        return cls(
            home=Path(home).expanduser().absolute(),
            cluster=os.environ.get("RATCHET_CLUSTER") or "ratchet",
            repository=PACKAGE.parent.parent,
        )

    def prepare(self) -> None:
        for folder in (self.home, self.logs, self.products, self.bin):
            folder.mkdir(parents=True, exist_ok=True)


def nodes_from_environment() -> int:
    """How many nodes are wanted: NODES=2 means a control plane and one worker."""
    value = os.environ.get("NODES", "")
    return max(int(value), 1) if value.isdigit() else 1
