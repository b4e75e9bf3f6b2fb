"""kopf as it is run, against a small API server: what it is told comes to the feed."""

import asyncio
import contextlib
import json
from typing import Any

from aiohttp import web
from fakeapi import SPEC, eventually, named
from kubernetes.aio.client.configuration import Configuration
from ratchet_operator import transport
from ratchet_operator.apiserver import ApiServer, Bucket
from ratchet_operator.controller import Controller
from ratchet_operator.kinds import API_VERSION, POLICY_DEPLOYMENT, ROLLOUT_POOL, TRAINING_JOB
from ratchet_operator.settings import Settings

OURS = (TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT)
DEEP = '{"a":' * 9_000 + "1" + "}" * 9_000


def job(name: str, version: int) -> dict[str, Any]:
    found = {**named(TRAINING_JOB, name), "spec": SPEC}
    found["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": str(version), "generation": 1}
    return found


def nested(name: str, version: int) -> str:
    """The JSON of a job, deeper than anything reads that was not told to."""
    text = json.dumps({**job(name, version), "more": None})
    return text.replace('"more": null', f'"more": {DEEP}')


def discovery(path: str) -> dict[str, Any] | None:
    """What the API server says that there is; kopf waits for Namespaces and CRDs before it does anything."""
    kinds = {
        "/api/v1": [("namespaces", "Namespace")],
        "/apis/apiextensions.k8s.io/v1": [("customresourcedefinitions", "CustomResourceDefinition")],
        f"/apis/{API_VERSION}": [(kind.plural, kind.kind) for kind in OURS],
    }
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        versions = [at.removeprefix("/apis/").split("/") for at in kinds if at.startswith("/apis/")]
        groups = [
            (group, {"groupVersion": f"{group}/{version}", "version": version}) for group, version in versions
        ]
        return {
            "groups": [{"name": group, "versions": [one], "preferredVersion": one} for group, one in groups]
        }
    if path not in kinds:
        return None
    common = {"singularName": "", "namespaced": True, "verbs": ["list", "watch", "patch"]}
    return {"resources": [{**common, "name": plural, "kind": kind} for plural, kind in kinds[path]]}


async def answer(request: web.Request) -> web.StreamResponse:
    """Lists have one object that is too deep; watches tell of another one, and then of one that is not."""
    if (found := discovery(request.path)) is not None:
        return web.json_response(found)
    if request.query.get("watch") != "true":
        items = nested("listed", 5) if request.path.endswith(TRAINING_JOB.plural) else ""
        text = f'{{"metadata": {{"resourceVersion": "9"}}, "items": [{items}]}}'
        return web.Response(text=text, content_type="application/json")
    stream = web.StreamResponse()
    await stream.prepare(request)
    if request.path.endswith(TRAINING_JOB.plural):
        for obj in (nested("deep", 10), json.dumps(job("plain", 11))):
            await stream.write(f'{{"type": "ADDED", "object": {obj}}}\n'.encode())
    await asyncio.Event().wait()
    return stream


def test_kopf_and_lists_go_on_behind_an_object_that_is_too_deep_to_be_read():
    async def scenario() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        settings = Settings(nodes_visible=False)
        loop = asyncio.get_running_loop()
        async with ApiServer(configuration, Bucket(1000, 1000, loop.time)) as api:
            controller = Controller(settings, api)
            running = asyncio.create_task(
                transport.run(settings, controller.feed, configuration, controller.followed)
            )
            jobs = controller.cache[TRAINING_JOB]
            await eventually(lambda: jobs.get("team", "plain") is not None or running.done())
            assert not running.done(), running.exception()
            page = [page async for page, _ in api.pages(TRAINING_JOB, None, None)]
            assert [obj["metadata"]["name"] for obj in page[0]] == ["listed"]
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        await runner.cleanup()

    asyncio.run(scenario())
