"""What the operator hears of policy servers, which are anybody's image, and of HTTPRoutes beside them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from fakeapi import FakeServer, against, eventually, named
from ratchet_operator import servers
from ratchet_operator.adminkey import AdminKey
from ratchet_operator.apiserver import ApiServer
from ratchet_operator.cache import Cache
from ratchet_operator.kinds import (
    CONFIG_MAP,
    HTTP_ROUTE,
    POD,
    POLICY_DEPLOYMENT,
    REVISION_LABEL,
    SERVING_LABEL,
    TRAINING_JOB,
)
from ratchet_operator.metrics import REGISTRY
from ratchet_operator.servers import ServerWatch

from ratchet.api.v1alpha1.serverstats import LATENCY_BOUNDS_SECONDS, ArmStats, Latency, ServerStats

LATENCY = Latency(counts=[0] * (len(LATENCY_BOUNDS_SECONDS) + 1))
STATS = ServerStats(
    incarnation="i",
    uptime_seconds=1.0,
    ready=True,
    draining=False,
    latency_bounds_seconds=list(LATENCY_BOUNDS_SECONDS),
    arms=[ArmStats(arm="self", digest="", requests=3, latency=LATENCY)],
)


def told(*names: str) -> Cache:
    """PolicyDeployments, each with one ready server on loopback and an HTTPRoute."""
    cache = Cache([POLICY_DEPLOYMENT, TRAINING_JOB, CONFIG_MAP, POD])
    for name in names:
        deployment = named(POLICY_DEPLOYMENT, name)
        deployment["metadata"] |= {"uid": name, "resourceVersion": "1"}
        deployment["spec"] = {"traffic": {"gateway": {"httpRouteRef": {"name": "route"}}}}
        config_map = named(CONFIG_MAP, f"{name}-rollout")
        owner = {"kind": POLICY_DEPLOYMENT.kind, "name": name, "uid": name, "controller": True}
        config_map["metadata"] |= {"uid": f"{name}-c", "resourceVersion": "2", "ownerReferences": [owner]}
        pod = named(POD, name)
        labels = {SERVING_LABEL: name, REVISION_LABEL: "arm"}
        pod["metadata"] |= {"uid": f"{name}-p", "resourceVersion": "3", "labels": labels}
        ready = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        cache[POLICY_DEPLOYMENT].put(deployment)
        cache[CONFIG_MAP].put(config_map)
        cache[POD].put({**pod, "status": {**ready, "phase": "Running"}})
    return cache


def watching(
    cache: Cache,
    answer: Callable[[], Awaitable[str]],
    scenario: Callable[[ServerWatch, list[str], FakeServer], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[[ServerWatch, str], None] = lambda watch, name: None,
) -> None:
    """Run a watch of servers that answer so; `scenario` is given the names of those that were looked at."""

    async def run(fake: FakeServer, api: ApiServer) -> None:
        async def stats(_: web.Request) -> web.Response:
            return web.Response(text=await answer())

        app = web.Application()
        app.router.add_get("/v1/stats", stats)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        monkeypatch.setattr(servers, "PORT", runner.addresses[0][1])
        looked: list[str] = []

        def look(namespace: str, name: str) -> None:
            looked.append(name)
            changed(watch, name)

        watch = ServerWatch(api, cache, AdminKey(""), look)
        task = asyncio.create_task(watch.run())
        try:
            await scenario(watch, looked, fake)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()

    against(run)


async def well() -> str:
    return STATS.model_dump_json(by_alias=True)


def test_a_number_that_nothing_can_count_with_is_a_wrong_answer(monkeypatch: pytest.MonkeyPatch):
    async def answer() -> str:
        body: Any = STATS.model_dump(by_alias=True)
        body["arms"][0]["requests"] = 10**400
        return json.dumps(body)

    async def scenario(watch: ServerWatch, looked: list[str], _: FakeServer) -> None:
        await eventually(lambda: looked != [])
        assert [one.stats for one in watch.heard("a").answers] == [None]

    watching(told("a"), answer, scenario, monkeypatch)


def test_what_breaks_on_one_ends_nothing_for_the_others_and_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def breaks(watch: ServerWatch, name: str) -> None:
        if name == "a":
            raise OverflowError(name)

    def broken() -> float:
        return REGISTRY.get_sample_value("ratchet_errors_total", {"kind": "look PolicyDeployment bug"}) or 0

    before = broken()

    async def scenario(watch: ServerWatch, looked: list[str], _: FakeServer) -> None:
        await eventually(lambda: looked.count("a") > 1 and looked.count("b") > 1)
        assert watch.heard("b").answers[0].stats == STATS
        assert broken() - before == looked.count("a")
        assert {vars(one)["key"] for one in caplog.records if one.message.endswith("broke")} == {"team/a"}

    watching(told("a", "b"), well, scenario, monkeypatch, breaks)


def test_a_route_that_was_changed_while_it_was_looked_at_is_not_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
):
    is_asked, goes_on = asyncio.Event(), asyncio.Event()
    found: list[bool] = []

    async def slow() -> str:
        is_asked.set()
        await goes_on.wait()
        return await well()

    def changed(watch: ServerWatch, name: str) -> None:
        found.append(watch.heard(name).gateway is not None)

    async def scenario(watch: ServerWatch, _: list[str], fake: FakeServer) -> None:
        await eventually(lambda: ("GET", HTTP_ROUTE.path("team", "route")) in fake.log and is_asked.is_set())
        watch.amended("a")
        goes_on.set()
        await eventually(lambda: len(found) > 1)
        assert found[:2] == [False, True]

    watching(told("a"), slow, scenario, monkeypatch, changed)
