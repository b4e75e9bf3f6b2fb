"""Watches against a small API server that breaks them: nothing is missed, and nothing is asked for twice."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration
from ratchet_operator.apiserver import ApiServer, Bucket, session
from ratchet_operator.cache import Cache
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import DEPLOYMENT, POLICY_DEPLOYMENT, ROLLOUT_POOL, TRAINING_JOB
from ratchet_operator.transport import Surviving
from ratchet_operator.watch import Watch
from ratchet_operator.workqueue import WorkQueue

Json = dict[str, Any]
PATH = DEPLOYMENT.path()
GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
CUT = object()
"""The connection breaks."""


def deployment(name: str, version: int, **annotations: str) -> Json:
    metadata = {"namespace": "team", "name": name, "uid": name, "resourceVersion": str(version)}
    return {"metadata": {**metadata, "annotations": annotations}}


def event(type_: str, obj: Json) -> Json:
    return {"type": type_, "object": obj}


class Script:
    """An API server that answers each list and each watch as it was told to, in order.

    Args:
        lists: resourceVersion and items of each list.
        watches: events of each watch, which goes on in silence after the last; an int is an HTTP status.

    """

    def __init__(self, lists: list[tuple[int, list[Json]]], watches: list[Any]) -> None:
        self.asked: list[str] = []
        self._lists = iter(lists)
        self._watches: Iterator[Any] = iter(watches)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") != "true":
            self.asked.append("list")
            version, found = next(self._lists)
            return web.json_response({"items": found, "metadata": {"resourceVersion": str(version)}})
        self.asked.append(f"watch {request.query.get('resourceVersion')}")
        told: Any = next(self._watches, ())
        if isinstance(told, int):
            return web.json_response({**GONE, "code": told}, status=told)
        stream = web.StreamResponse()
        await stream.prepare(request)
        for line in told:
            if line is CUT:
                assert request.transport is not None
                request.transport.abort()
                return stream
            await stream.write(json.dumps(line).encode() + b"\n")
        await asyncio.Event().wait()
        return stream


def against(script: Script, scenario: Callable[[Configuration], Awaitable[None]]) -> None:
    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", script.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            await scenario(configuration)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def watched(script: Script, asked: list[str]) -> list[tuple[str, Json]]:
    """What the cache has of Deployments once the API server was asked all this."""
    cache = Cache([TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT, DEPLOYMENT])

    async def scenario(configuration: Configuration) -> None:
        loop = asyncio.get_running_loop()
        async with ApiServer(configuration, Bucket(1000, 1000, loop.time)) as api:
            watch = Watch(api, Feed(cache, WorkQueue(loop.time)), DEPLOYMENT, None, None)
            task = asyncio.create_task(watch.run())
            await eventually(lambda: len(script.asked) >= len(asked))
            task.cancel()

    against(script, scenario)
    assert script.asked == asked
    return sorted((obj["metadata"]["name"], obj["metadata"]["annotations"]) for obj in cache[DEPLOYMENT])


def test_a_watch_that_breaks_goes_on_where_it_broke():
    script = Script(
        [(10, [deployment("a", 5)])],
        [
            [event("MODIFIED", deployment("a", 11, seen="yes")), CUT],
            [event("ADDED", deployment("b", 12)), CUT],
        ],
    )

    found = watched(script, ["list", "watch 10", "watch 11", "watch 12"])

    assert found == [("a", {"seen": "yes"}), ("b", {})]


def test_an_object_whose_label_was_taken_off_and_put_back_is_told():
    script = Script(
        [(10, [deployment("a", 5)])],
        [
            [
                event("DELETED", deployment("a", 11)),
                event("ADDED", deployment("a", 12, label="back")),
                event("MODIFIED", deployment("a", 13, seen="yes")),
                CUT,
            ]
        ],
    )

    assert watched(script, ["list", "watch 10", "watch 13"]) == [("a", {"seen": "yes"})]


def test_a_bookmark_moves_the_place_to_go_on_from():
    script = Script([(10, [])], [[event("BOOKMARK", {"metadata": {"resourceVersion": "90"}}), CUT]])

    watched(script, ["list", "watch 10", "watch 90"])


@pytest.mark.parametrize("expired", [410, [event("ERROR", GONE)]], ids=["answer", "event"])
def test_where_the_place_is_no_longer_known_all_is_listed_and_what_is_gone_forgotten(expired: Any):
    script = Script([(10, [deployment("a", 5), deployment("b", 6)]), (50, [deployment("b", 6)])], [expired])

    found = watched(script, ["list", "watch 10", "list", "watch 50"])

    assert found == [("b", {})]


def test_a_watch_that_can_not_be_opened_goes_on_from_the_same_place_and_then_anew():
    script = Script([(10, []), (50, [])], [503, 500, 503, 500])

    watched(script, ["list", *4 * ["watch 10"], "list", "watch 50"])


def test_an_object_larger_than_a_connections_buffer_is_told():
    large = "x" * 300_000
    script = Script([(10, [])], [[event("ADDED", deployment("a", 11, large=large)), CUT]])

    assert watched(script, ["list", "watch 10", "watch 11"]) == [("a", {"large": large})]


def test_kopf_is_told_nothing_of_an_expired_place_and_its_followers_that_the_watch_began_anew():
    script = Script([(10, [])], [410, 410, [event("ADDED", deployment("a", 5))]])
    followed: list[str] = []

    async def scenario(configuration: Configuration) -> None:
        surviving = Surviving(configuration, followed.append)
        async with session(configuration, limit=0, middlewares=(surviving,)) as connections:
            async with connections.get(PATH):
                assert followed == []
            watch = {"watch": "true", "resourceVersion": "10"}
            async with connections.get(PATH, params=watch, timeout=aiohttp.ClientTimeout(10)) as answer:
                assert answer.status == 200
                assert json.loads(await answer.content.readline())["type"] == "ADDED"

    against(script, scenario)
    assert script.asked == ["list", "watch 10", "watch None", "watch None"]
    assert followed == [PATH]


def test_a_watch_goes_on_behind_an_object_that_is_too_deep_to_be_kept():
    deep: Json = {}
    for _ in range(300):
        deep = {"a": deep}
    told = [
        event("ADDED", {**deployment("deep", 11), "spec": deep}),
        event("ADDED", deployment("b", 12)),
        CUT,
    ]
    assert watched(Script([(10, [])], [told]), ["list", "watch 10", "watch 12"]) == [("b", {})]
