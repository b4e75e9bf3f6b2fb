"""A control plane without nodes: etcd, API server, controller manager and scheduler as plain processes.

It starts in seconds, in a temporary folder, on free ports of loopback, and leaves nothing behind. What runs
on it is what runs in a real cluster, except for pods: a test's kubelet or KWOK plays them.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from localcluster import gomods
from localcluster.gomods import GoProgram
from localcluster.settings import Settings
from localcluster.shell import MissingRequirementError, StepError, run, tail, wait_until
from localcluster.steps import run_steps

Json = dict[str, Any]

START_SECONDS = 60.0
STOP_SECONDS = 10.0
# What KWOK makes of nodes and pods. Pods get ready and go when told to; Jobs never complete by themselves.
_KWOK_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-delete.yaml",
)
_USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


class RequestError(Exception):
    """The API server refused a request. `status` is the HTTP status, `body` what it said."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


@dataclass
class SimulatedCluster:
    """The control plane, for as long as the `with` block lasts.

    Raises:
        StepError: a program could not be built, or did not start; the error names its log.

    """

    audit_policy: str = ""
    """YAML of an audit `Policy`; empty for no audit log."""
    crds: Sequence[Json] = ()
    """CustomResourceDefinitions to begin with: the garbage collector hears of later ones late."""
    scheduler: bool = True
    kwok_nodes: int = 0
    """How many nodes KWOK pretends; 0 starts no KWOK."""
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Further arguments of a program, by its name."""
    settings: Settings = field(default_factory=Settings.from_environment)
    folder: Path = field(init=False)
    url: str = field(init=False)

    def __enter__(self) -> SimulatedCluster:
        self.folder = Path(tempfile.mkdtemp(prefix="ratchet-simulated-"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tokens = {name: secrets.token_urlsafe(32) for name in _USERS}
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def ca(self) -> Path:
        """The certificate that the API server shows, which is its own authority."""
        return self.folder / "server.crt"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """One JSON object in each line."""
        return self.folder / "audit.log"

    def pids(self) -> dict[str, int]:
        """Process IDs by program."""
        return {name: process.pid for name, process in self._processes.items()}

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Json:
        """One request as the administrator.

        Raises:
            RequestError: the API server refused.

        """
        request = urllib.request.Request(  # noqa: S310
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._tokens['admin']}", "Content-Type": content_type},
        )
        try:
            with urllib.request.urlopen(request, context=self._trust, timeout=30) as answer:  # noqa: S310
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise RequestError(error.code, error.read().decode(errors="replace")) from error
        return json.loads(text) if text.startswith("{") else {}

    def service_account_kubeconfig(self, namespace: str, name: str, server: str = "") -> Path:
        """A kubeconfig of a ServiceAccount that exists, with a token for a day.

        Args:
            namespace: of the ServiceAccount.
            name: of the ServiceAccount.
            server: where to send requests instead of to the API server itself.

        """
        answer = self.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": 86400},
            },
        )
        path = self.folder / f"{namespace}-{name}-{secrets.token_hex(4)}.kubeconfig"
        return self._write_kubeconfig(path, answer["status"]["token"], server)

    def _start(self) -> None:
        programs = [gomods.KUBERNETES, gomods.ETCD, *([gomods.KWOK] if self.kwok_nodes else [])]
        self._build(programs)
        etcd, peer, api = _free_ports(3)
        self.url = f"https://127.0.0.1:{api}"
        self._write_credentials()
        self._trust = ssl.create_default_context(cafile=str(self.ca))
        client = f"http://127.0.0.1:{etcd}"
        self._run(
            "etcd",
            gomods.ETCD,
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self._run("kube-apiserver", gomods.KUBERNETES, *self._api_server_arguments(client, api))
        self._wait_for("kube-apiserver", lambda: self._answers("/readyz"))
        for crd in self.crds:
            self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        for crd in self.crds:
            self._wait_for("kube-apiserver", partial(self._answers, _collection(crd)))
        self._run(
            "kube-controller-manager",
            gomods.KUBERNETES,
            *self._client_arguments("controller-manager"),
            f"--service-account-private-key-file={self.folder / 'server.key'}",
            f"--root-ca-file={self.ca}",
            "--use-service-account-credentials",
        )
        if self.scheduler:
            self._run("kube-scheduler", gomods.KUBERNETES, *self._client_arguments("scheduler"))
        if self.kwok_nodes:
            self._start_kwok()
        self._wait_for(
            "kube-controller-manager",
            lambda: self._answers("/api/v1/namespaces/default/serviceaccounts/default"),
        )

    def _build(self, programs: Sequence[GoProgram]) -> None:
        missing = [program for program in programs if not program.folder(self.settings).is_dir()]
        if missing:
            self.settings.prepare()
            gomods.require_go()
            run_steps([gomods.build_step(program, self.settings) for program in missing], self.settings.logs)

    def _write_credentials(self) -> None:
        if shutil.which("openssl") is None:
            raise MissingRequirementError("openssl is not installed", hint="Debian: apt-get install openssl")
        words = "openssl req -x509 -nodes -days 7 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
        names = ["-subj", "/CN=ratchet-simulated", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        files = ["-keyout", self.folder / "server.key", "-out", self.ca]
        run([*words.split(), *names, *files], log=self.folder / "openssl.log")
        rows = [f'{self._tokens[name]},{user},{user},"{group}"' for name, (user, group) in _USERS.items()]
        (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        (self.folder / "audit-policy.yaml").write_text(self.audit_policy)
        for name in _USERS:
            self._write_kubeconfig(self.folder / f"{name}.kubeconfig", self._tokens[name])

    def _write_kubeconfig(self, path: Path, token: str, server: str = "") -> Path:
        authority = (
            {} if server else {"certificate-authority-data": base64.b64encode(self.ca.read_bytes()).decode()}
        )
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "simulated", "cluster": {"server": server or self.url, **authority}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "simulated", "context": {"cluster": "simulated", "user": "user"}}],
            "current-context": "simulated",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    def _api_server_arguments(self, etcd: str, port: int) -> list[str]:
        audit = [
            f"--audit-policy-file={self.folder / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}",
        ]
        return [
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={port}",
            f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.ca}",
            f"--service-account-signing-key-file={self.folder / 'server.key'}",
            "--service-cluster-ip-range=10.96.0.0/12",
            *(audit if self.audit_policy else []),
        ]

    def _client_arguments(self, user: str) -> list[str]:
        return [f"--kubeconfig={self.folder / user}.kubeconfig", "--leader-elect=false", "--secure-port=0"]

    def _start_kwok(self) -> None:
        for number in range(self.kwok_nodes):
            self.request("POST", "/api/v1/nodes", _node(f"kwok-{number}"))
        stages = gomods.module_folder(gomods.KWOK.module) / "kustomize" / "stage"
        self._run(
            "kwok",
            gomods.KWOK,
            *(f"--config={stages / stage}" for stage in _KWOK_STAGES),
            f"--kubeconfig={self.admin_kubeconfig}",
            "--manage-all-nodes",
            "--node-lease-duration-seconds=40",
        )

    def _run(self, name: str, program: GoProgram, *arguments: str) -> None:
        executable = program.path(self.settings)
        with (self.folder / f"{name}.log").open("wb") as log:
            # The Kubernetes binary takes its role from its name. A session of its own, so that Ctrl-C reaches
            # only the one that stops it in order; and where that one is killed, the kernel stops it.
            self._processes[name] = subprocess.Popen(
                [name, *arguments, *self.arguments.get(name, ())],
                executable=executable,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={key: value for key, value in os.environ.items() if not key.startswith("ETCD_")},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _answers(self, path: str) -> bool:
        try:
            self.request("GET", path)
        except (RequestError, OSError):
            return False
        return True

    def _wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        log = self.folder / f"{name}.log"
        process = self._processes[name]
        wait_until(lambda: process.poll() is not None or ready(), seconds=START_SECONDS, every=0.05)
        if process.poll() is not None or not ready():
            raise StepError(f"{name} did not start", hint=tail(log))


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # prctl(2), Linux


def _end_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _node(name: str) -> Json:
    amount = {"cpu": "1k", "memory": "1Ti", "pods": "10k"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "type": "kwok"}},
        "status": {"allocatable": amount, "capacity": amount},
    }


def _collection(crd: Json) -> str:
    """The path of a CustomResourceDefinition's objects."""
    spec = crd["spec"]
    return f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses; all are held at once, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
