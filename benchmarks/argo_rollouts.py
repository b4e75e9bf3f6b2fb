"""Argo Rollouts on the local cluster, with a Prometheus that asks every pod each second.

Its controller runs on this machine, Prometheus in the network of the cluster's node, from where pods can be
reached. Both are built from their Go modules; all that is put into the cluster goes with the block's end.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "hack"))

from localcluster import gomods, kindcluster, tools  # noqa: E402
from localcluster.gomods import ARGO_ROLLOUTS, PROMETHEUS  # noqa: E402
from localcluster.settings import Settings  # noqa: E402
from localcluster.steps import run_steps  # noqa: E402
from rollouts.cluster import Kubectl, NotAsToldError, eventually  # noqa: E402

Json = dict[str, Any]
APP, VERSION = "app", "version"
PORT = 19090
CONFIG: Json = {
    "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
    "scrape_configs": [
        {"job_name": "pods", "file_sd_configs": [{"files": ["/etc/prometheus/targets.json"]}]}
    ],
}
# Name, address, labels and end of each pod, one line for each change of any.
LINE = (
    "{.metadata.name} {.status.podIP} {.metadata.labels.app} {.metadata.labels.version} "
    '{.metadata.deletionTimestamp}{"\\n"}'
)


@contextmanager
def installed(namespace: str, image: str) -> Generator[str]:
    """The address of a Prometheus, for as long as the block and Argo Rollouts last.

    Args:
        namespace: exists, and is the one that the controller looks after.
        image: any that the Docker engine has; Prometheus runs in its file system.

    Raises:
        NotAsToldError: the cluster has Argo Rollouts already, and it is not ours to take away.

    """
    settings = Settings.from_environment()
    settings.prepare()
    run_steps([tools.step(name, settings) for name in ("argo-rollouts", "prometheus")], settings.logs)
    folder = gomods.module_folder(ARGO_ROLLOUTS.module) / "manifests" / "crds"
    crds = [path.read_text() for path in sorted(folder.glob("*-crd.yaml"))]
    names = [f"crd/{yaml.safe_load(crd)['metadata']['name']}" for crd in crds]
    kubectl = Kubectl()
    if kubectl("get", "--ignore-not-found", "-o", "name", *names).strip():
        words = (
            f"this cluster has Argo Rollouts already: `kubectl delete {' '.join(names)}`, if nobody needs it"
        )
        raise NotAsToldError(words)
    with ExitStack() as stack:
        stack.callback(kubectl, "delete", "--ignore-not-found", "--timeout=60s", *names)
        for crd in crds:
            kubectl("apply", "--server-side", "-f", "-", stdin=crd)
        kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = kindcluster.containers(settings)[0].name
        stack.enter_context(_prometheus(node, image, PROMETHEUS.path(settings, "prometheus"), scratch))
        stack.enter_context(_targets(namespace, scratch / "targets.json"))
        stack.enter_context(_controller(namespace, ARGO_ROLLOUTS.path(settings), scratch / "controller.log"))
        address = f"http://{_address(node)}:{PORT}"
        eventually("Prometheus answers", lambda: _answers(f"{address}/-/ready"))
        yield address


@contextmanager
def _controller(namespace: str, program: Path, log: Path) -> Generator[None]:
    """The controller with its defaults, but for the leader's election, of which there is nothing to win."""
    ports = ["--metricsPort=18090", "--healthzPort=18091"]
    command = [program, "--namespaced", f"--namespace={namespace}", "--leader-elect=false", *ports]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
    try:
        eventually("Argo's controller answers", lambda: _answers("http://127.0.0.1:18091/healthz"))
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _prometheus(node: str, image: str, program: Path, folder: Path) -> Generator[None]:
    folder.chmod(0o755)
    (folder / "targets.json").write_text("[]")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(CONFIG))
    name = f"{node}-prometheus"
    subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)
    subprocess.run(
        [
            *("docker", "run", "--rm", "--detach", "--name", name, "--network", f"container:{node}"),
            *("--volume", f"{program}:/prometheus:ro", "--volume", f"{folder}:/etc/prometheus:ro"),
            *("--entrypoint", "/prometheus", image, "--config.file=/etc/prometheus/prometheus.yml"),
            *("--storage.tsdb.path=/tmp/prometheus", f"--web.listen-address=:{PORT}"),
            "--scrape.discovery-reload-interval=1s",
        ],
        check=True,
        capture_output=True,
    )
    try:
        yield
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)


@contextmanager
def _targets(namespace: str, file: Path) -> Generator[None]:
    """Keeps Prometheus' list of pods as the cluster has it: what discovery by the API server does."""
    watch = subprocess.Popen(
        ["kubectl", "--namespace", namespace, "get", "pods", "--watch", "-l", APP, "-o", f"jsonpath={LINE}"],
        stdout=subprocess.PIPE,
        text=True,
    )

    def follow() -> None:
        pods: dict[str, Json] = {}
        for line in watch.stdout or ():
            match line.split():
                case [name, address, app, version] if "." in address:
                    labels = {APP: app, VERSION: version}
                    pods[name] = {"targets": [f"{address}:8080"], "labels": labels}
                case [name, *_]:
                    pods.pop(name, None)
                case _:
                    continue
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(list(pods.values())))
            partial.rename(file)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.terminate()
        watch.wait(10)
        thread.join(10)


def _address(node: str) -> str:
    words = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    command = ["docker", "inspect", "--format", words, node]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own
            return answer.status == 200
    except OSError:
        time.sleep(0.1)
        return False
