"""kubectl, and waiting for what it says."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Json = dict[str, Any]
T = TypeVar("T")


class NotAsToldError(Exception):
    """Something ended otherwise than it should, or not in time."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl in a namespace, that of the kubeconfig where it is empty."""

    namespace: str = ""

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """What it printed.

        Raises:
            NotAsToldError: it ended with another code than 0.

        """
        where = ("--namespace", self.namespace) if self.namespace else ()
        done = subprocess.run(
            ["kubectl", *where, *arguments], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NotAsToldError(f"kubectl {arguments[0]}: {done.stderr.strip()}")
        return done.stdout


def eventually(what: str, probe: Callable[[], T | None], seconds: float = 120) -> T:
    """The first answer that is one, asked four times a second; raises NotAsToldError."""
    end = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > end:
            raise NotAsToldError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.25)
    return answer


def signal_container(pod: Json, signal: str) -> None:
    """Sends a signal to the processes of a pod's first container, from the node that is a container itself.

    To Kubernetes it looks as if they had crashed by themselves (SIGKILL), or hang (SIGSTOP).
    """
    id_ = pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    order = ["ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", signal, id_]
    subprocess.run(["docker", "exec", pod["spec"]["nodeName"], *order], check=True, capture_output=True)
