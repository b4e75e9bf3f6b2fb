"""A small API server over HTTP, which can also misbehave, and what tests of the operator ask of it."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration
from ratchet_operator.adminkey import AdminKey
from ratchet_operator.apiserver import ApiServer, Bucket
from ratchet_operator.cache import Cache
from ratchet_operator.execute import Executor
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    POLICY_DEPLOYMENT,
    ROLLOUT_POOL,
    SERVICE,
    TRAINING_JOB,
    Key,
    uid_of,
)
from ratchet_operator.observe import SecretSightings
from ratchet_operator.taken import Taken
from ratchet_operator.workqueue import WorkQueue

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("RLTrainingJob", "team", "job")
JOB = {"metadata": {"name": "job", "namespace": "team", "uid": "job-uid", "resourceVersion": "1"}}

SPEC = {
    "environment": {"id": "CartPole-v1"},
    "algorithm": {"type": "PPO", "ppo": {}},
    "checkpoint": {"s3": {"bucket": "bucket"}},
    "stop": {"maxSteps": 1000},
}


class FakeServer:
    """Objects by path, a log of requests, and failures to order.

    Attributes:
        stalled: by path, what an answer there waits for.

    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[str, str]] = []
        self.accepted: list[str] = []
        self.fail: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self.going: set[str] = set()
        self.stalled: dict[str, asyncio.Event] = {}
        self.lists = False
        self._numbers = itertools.count(1)

    def answer(self, status: int, message: str, reason: str = "") -> web.Response:
        headers = {"Retry-After": "30"} if status == 429 else None
        said = {"kind": "Status", "message": message, "reason": reason}
        return web.json_response(said, status=status, headers=headers)

    async def handle(self, request: web.Request) -> web.Response:
        """One request to a connection: kopf ends every task that is younger than itself, the server's too."""
        answer = await self._answer_to(request)
        answer.force_close()
        return answer

    async def _answer_to(self, request: web.Request) -> web.Response:
        path = request.path
        self.log.append((request.method, path))
        self.accepted.append(request.headers.get("Accept", ""))
        if path in self.stalled:
            await self.stalled[path].wait()
        if self.fail.get((request.method, path)):
            status, message = self.fail[request.method, path].pop(0)
            return self.answer(status, message)
        body = json.loads(await request.text()) if request.can_read_body else {}
        if request.method == "GET" and "fieldSelector" in request.query:
            return self._named(path, request.query["fieldSelector"])
        if request.method == "GET":
            return self._get(path)
        if request.method == "DELETE":
            return self._delete(path, body)
        if "team" in self.going:
            causes = {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}
            said = "unable to create new content in namespace team because it is being terminated"
            return web.json_response({"reason": "Forbidden", "message": said, "details": causes}, status=403)
        return self._write(request, path, body)

    def _get(self, path: str) -> web.Response:
        if self.lists and path not in self.objects:
            return web.json_response({"items": [], "metadata": {"resourceVersion": "9"}})
        if path not in self.objects:
            return self.answer(404, "not found", "NotFound")
        return web.json_response(self.objects[path])

    def _named(self, collection: str, selector: str) -> web.Response:
        live = self.objects.get(f"{collection}/{selector.removeprefix('metadata.name=')}")
        items = [] if live is None else [live]
        return web.json_response({"items": items, "metadata": {"resourceVersion": "9"}})

    def _delete(self, path: str, body: dict[str, Any]) -> web.Response:
        live = self.objects.get(path)
        if live is None:
            return self.answer(404, "not found", "NotFound")
        if body["preconditions"]["uid"] != uid_of(live):
            said = f"Precondition failed: UID in precondition: x, UID in object meta: {uid_of(live)}"
            return self.answer(409, said, "Conflict")
        del self.objects[path]
        return web.json_response({"kind": "Status", "status": "Success"})

    def _write(self, request: web.Request, path: str, body: dict[str, Any]) -> web.Response:
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return self.answer(409, "already exists", "AlreadyExists")
        live = self.objects.get(path.removesuffix("/status"))
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted and live and wanted != live["metadata"]["resourceVersion"]:
            return self.answer(409, "the object has been modified", "Conflict")
        obj = {**(live or {}), **body}
        metadata = {**(live or {}).get("metadata", {}), **body.get("metadata", {})}
        metadata.setdefault("uid", f"uid-{next(self._numbers)}")
        metadata["resourceVersion"] = str(next(self._numbers))
        self.objects[path.removesuffix("/status")] = {**obj, "metadata": metadata}
        return web.json_response(self.objects[path.removesuffix("/status")])


def against(scenario: Callable[[FakeServer, ApiServer], Awaitable[None]]) -> None:
    async def run() -> None:
        fake = FakeServer()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        loop = asyncio.get_running_loop()
        try:
            async with ApiServer(configuration, Bucket(1000, 1000, loop.time)) as api:
                await scenario(fake, api)
        finally:
            await runner.cleanup()

    asyncio.run(run())


def executor(
    api: ApiServer, clock: Callable[[], float] = time.monotonic
) -> tuple[Executor, Cache, SecretSightings]:
    cache = Cache([TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT, DEPLOYMENT, SERVICE, CONFIG_MAP])
    sightings = SecretSightings(api)
    feed = Feed(cache, WorkQueue(time.monotonic))
    return Executor(api, feed, sightings, "operator-1", AdminKey(""), Taken(clock)), cache, sightings


def named(kind: Any, name: str) -> dict[str, Any]:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": name, "namespace": "team"},
    }


def owned(kind: Any, name: str) -> dict[str, Any]:
    obj = named(kind, name)
    obj["metadata"]["ownerReferences"] = [{"uid": "job-uid", "controller": True}]
    return obj


async def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
