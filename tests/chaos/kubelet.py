"""A node that pretends: it runs every pod that appears; a trainer's pod answers /status on its own address, a
policy server's what `servers` says.

It talks to the API server directly, never through the proxy, and keeps count of the pods it saw.
"""

import asyncio
import contextlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp import web
from ratchet_operator.build.trainer import PORT
from ratchet_operator.kinds import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_UID_LABEL
from servers import PolicyServers

from ratchet.api.v1alpha1 import TrainerStatus

Json = dict[str, Any]
NODE = "pretended"


class Api:
    """Requests to the API server as the administrator, in one event loop."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Json | None:
        """The answer; None for 404.

        Raises:
            RefusedError: any other refusal.

        """
        headers = {"Content-Type": content_type}
        async with self.session.request(
            method, path, data=None if body is None else json.dumps(body), headers=headers
        ) as answer:
            text = await answer.text()
            if answer.status == 404:
                return None
            if answer.status >= 400:
                raise RefusedError(answer.status, json.loads(text).get("message", text))
            return json.loads(text)

    async def merge(self, path: str, change: Json) -> Json | None:
        return await self.request("PATCH", path, change, "application/merge-patch+json")

    async def list(self, path: str, selector: str = "") -> list[Json]:
        found = await self.request("GET", f"{path}?labelSelector={selector}")
        return (found or {}).get("items", [])


class RefusedError(AssertionError):
    """The API server refused. `status` is the HTTP status, `message` what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


@dataclass
class Kubelet:
    """Use as an async context manager."""

    api: Api
    pods_run: bool = True
    # Loopback has sixteen million addresses; the process ID keeps two test runs apart.
    network: str = f"127.{64 + os.getpid() % 128}"
    says: dict[str, TrainerStatus] = field(default_factory=dict[str, TrainerStatus])
    """What the trainer of a job answers, by the job's UID; Starting where nothing is written here."""
    ran: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    """How many pods ran, by namespace, component and attempt."""

    async def __aenter__(self) -> "Kubelet":
        app = web.Application()
        app.router.add_get("/status", self._status)
        self.servers = PolicyServers(self._pod_behind)
        self.servers.register(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._sites: dict[str, web.TCPSite] = {}
        self._pods: dict[str, Json] = {}  # by address
        self._started: set[str] = set()
        await self._make_node()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._runner.cleanup()

    async def fail_trainer(self, namespace: str, exit_code: int) -> None:
        """The trainer's container ends with this code and is started again, as kubelets do."""
        pods = await self.api.list(f"/api/v1/namespaces/{namespace}/pods", f"{COMPONENT_LABEL}=trainer")
        (pod,) = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        ended = {"exitCode": exit_code, "reason": "Error", "finishedAt": _now(), "startedAt": _now()}
        statuses = [
            {**status, "restartCount": 1, "lastState": {"terminated": ended}}
            for status in pod["status"]["containerStatuses"]
        ]
        await self.api.merge(f"{_path(pod)}/status", {"status": {"containerStatuses": statuses}})

    async def _make_node(self) -> None:
        amount = {"cpu": "1k", "memory": "1Ti", "pods": "10k"}
        node = {
            "metadata": {"name": NODE},
            "status": {
                "capacity": amount,
                "allocatable": amount,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        }
        with contextlib.suppress(RefusedError):  # an earlier one has made it
            await self.api.request("POST", "/api/v1/nodes", node)

    async def _run(self) -> None:
        while True:
            found = await self.api.request("GET", "/api/v1/pods") or {}
            if not self.pods_run:
                return
            for pod in found["items"]:
                await self._look_at(pod)
            version = found["metadata"]["resourceVersion"]
            params = {"watch": "true", "resourceVersion": version}
            async with self.api.session.get("/api/v1/pods", params=params) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        break
                    if event["type"] == "DELETED":
                        await self._forget(event["object"])
                    else:
                        await self._look_at(event["object"])

    async def _look_at(self, pod: Json) -> None:
        with contextlib.suppress(RefusedError):  # a newer version is on its way
            if "deletionTimestamp" in pod["metadata"]:
                await self._forget(pod)
                await self.api.request("DELETE", _path(pod), {"gracePeriodSeconds": 0})
            elif "nodeName" not in pod["spec"]:
                target = {"kind": "Node", "name": NODE}
                await self.api.request(
                    "POST",
                    f"{_path(pod)}/binding",
                    {"metadata": {"name": pod["metadata"]["name"]}, "target": target},
                )
            elif pod["metadata"]["uid"] not in self._started:
                self._started.add(pod["metadata"]["uid"])
                await self._start(pod)

    async def _start(self, pod: Json) -> None:
        labels = pod["metadata"]["labels"]
        component = labels.get(COMPONENT_LABEL, "")
        number = len(self._started)
        address = f"{self.network}.{number // 250}.{number % 250 + 1}"
        if component in ("trainer", "server"):
            self._pods[address] = pod
            self._sites[address] = web.TCPSite(self._runner, address, PORT)
            await self._sites[address].start()
        now = _now()
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": now,
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": now}
                for kind in ("Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": now}},
                }
                for container in pod["spec"]["containers"]
            ],
        }
        await self.api.merge(f"{_path(pod)}/status", {"status": status})
        self.ran[pod["metadata"]["namespace"], component, labels.get(ATTEMPT_LABEL, "")] += 1

    async def _forget(self, pod: Json) -> None:
        for address, known in list(self._pods.items()):
            if known["metadata"]["uid"] == pod["metadata"]["uid"]:
                del self._pods[address]
                await self._sites.pop(address).stop()

    def _pod_behind(self, request: web.Request) -> Json:
        assert request.transport is not None
        pod = self._pods.get(request.transport.get_extra_info("sockname")[0])
        if pod is None:
            raise web.HTTPServiceUnavailable(text="this pod is going")
        return pod

    async def _status(self, request: web.Request) -> web.Response:
        labels = self._pod_behind(request)["metadata"]["labels"]
        uid, attempt = labels[JOB_UID_LABEL], int(labels[ATTEMPT_LABEL])
        starting = TrainerStatus(uid=uid, attempt=attempt, epoch=attempt, state="Starting")
        said = self.says.get(uid, starting).model_copy(
            update={"uid": uid, "attempt": attempt, "epoch": attempt}
        )
        return web.json_response(said.to_wire())


def _path(pod: Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
