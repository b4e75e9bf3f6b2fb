"""What the cluster tests say to the real cluster: kubectl, waiting with a deadline, a diary of failures."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Json = dict[str, Any]
T = TypeVar("T")


class KubectlError(AssertionError):
    """kubectl refused; the text is what it printed."""


def eventually(what: str, probe: Callable[[], T | None], deadline: float = 180) -> T:
    """Return the first truthy answer of `probe`, asked four times a second.

    Raises:
        AssertionError: `deadline` seconds went by; names `what` and the last answer.

    """
    end = time.monotonic() + deadline
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline:.0f} s; last seen: {answer!r}")
        time.sleep(0.25)


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace of the cluster under test."""

    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in this namespace.

        Raises:
            KubectlError: it ended with another code than 0.

        """
        done = subprocess.run(
            ["kubectl", "--namespace", self.name, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, manifest: Json) -> None:
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))

    def find(self, kind: str, name: str) -> Json | None:
        """The object, or None where there is none."""
        text = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, selector: str = "") -> list[Json]:
        return json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]

    def patch(self, kind: str, name: str, change: Json, *, subresource: str | None = None) -> None:
        extra = ("--subresource", subresource) if subresource else ()
        self.kubectl("patch", kind, name, "--type", "merge", "-p", json.dumps(change), *extra)

    def logs(self, pod: str, *options: str) -> str:
        """What the pod has said so far; nothing where its container has not started."""
        try:
            return self.kubectl("logs", pod, *options)
        except KubectlError:
            return ""

    def children(self, job: str) -> dict[str, str]:
        """`kind/name` to UID of everything labelled as the job's."""
        kinds = "deployments,replicasets,pods,services,configmaps,secrets,rolloutpools,networkpolicies"
        items = self.list(kinds, f"ratchet.dev/job={job}")
        return {f"{i['kind']}/{i['metadata']['name']}": i["metadata"]["uid"] for i in items}

    @classmethod
    @contextmanager
    def fresh(cls, name: str, s3_secret: Json) -> Iterator["Namespace"]:
        """A new one that enforces the restricted profile and has the keys of the cluster's S3 server."""
        space = cls(name)
        subprocess.run(
            ["kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait"], check=True, timeout=180
        )
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        space.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        metadata = {"name": "s3-credentials"}
        space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": s3_secret["data"]})
        yield space
        subprocess.run(["kubectl", "delete", "namespace", name, "--wait=false"], check=True, timeout=60)

    def diary(self) -> str:
        """What a person would ask for after a failure: objects, events, the pods' logs."""
        parts = [
            self.kubectl("get", "rlj,rlp,pods,deployments,replicasets", "-o", "wide"),
            self.kubectl("get", "rlj", "-o", "yaml"),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp"),
        ]
        for pod in self.list("pods"):
            name = pod["metadata"]["name"]
            parts += [f"--- {name}\n{self.logs(name, '--tail=40')}"]
            parts += [f"--- {name}, before\n{self.logs(name, '--previous', '--tail=40')}"]
        return "\n".join(parts)


def gateway() -> str:
    """Address of this machine, as pods of the cluster reach it."""
    (node,) = Namespace("default").list("nodes", "node-role.kubernetes.io/control-plane")
    address = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
    inspected = ["docker", "inspect", "--format", address, node["metadata"]["name"]]
    return subprocess.run(inspected, check=True, capture_output=True, text=True).stdout.strip()


def condition(job: Json | None, kind: str) -> Json:
    """The condition of that type, or an empty one."""
    conditions = (job or {}).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def progress(job: Json | None) -> Json:
    return (job or {}).get("status", {}).get("progress", {})
