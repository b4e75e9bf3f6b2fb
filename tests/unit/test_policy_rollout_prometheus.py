"""A guard's query: one number within bounds; all else says nothing, and Prometheus' outage least of all."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp import web
from fakeapi import eventually
from prometheus import scraping
from ratchet_operator.queries import Queries
from ratchet_operator.rollout.prometheus import LARGEST_ANSWER, ask, verdict

from ratchet.api.v1alpha1.policydeployment import PrometheusGuard
from ratchet.evidence import Decision, Verdict

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(**members: Any) -> PrometheusGuard:
    return PrometheusGuard.model_validate(
        {"name": "tickets", "url": "http://prometheus:9090", "query": "tickets", "max": 5, **members}
    )


def vector(*values: object) -> dict[str, Any]:
    series = [{"metric": {}, "value": [1e9, value]} for value in values]
    return {"status": "success", "data": {"resultType": "vector", "result": series}}


@pytest.mark.parametrize(
    ("bounds", "value", "found"),
    [
        ({"max": 5}, "5", Verdict.PASS),
        ({"max": 5}, "5.01", Verdict.FAIL),
        ({"max": None, "min": 2}, "2", Verdict.PASS),
        ({"max": None, "min": 2}, "1.9", Verdict.FAIL),
        ({"max": 5, "min": 2}, "3e0", Verdict.PASS),
        ({"max": 5, "min": -5}, "-6", Verdict.FAIL),
        ({"max": 5}, "+Inf", Verdict.FAIL),
        ({"max": 5}, "NaN", Verdict.NOT_ENOUGH_EVIDENCE),
    ],
)
def test_a_number_is_compared_with_its_bounds(bounds: dict[str, Any], value: str, found: Verdict):
    decision = verdict(guard(**bounds), vector(value))
    assert (decision.guard, decision.verdict) == ("tickets", found)
    assert decision.canary is None or math.isfinite(decision.canary)


def test_no_series_is_no_traffic_yet():
    assert verdict(guard(), vector()).verdict is Verdict.NOT_ENOUGH_EVIDENCE


@pytest.mark.parametrize(
    "body",
    [
        vector("1", "2"),
        vector("many"),
        vector(7),
        vector(None),
        {"status": "error", "errorType": "bad_data", "error": "parse error"},
        {"status": "success", "data": {"resultType": "matrix", "result": []}},
        {"status": "success", "data": {"resultType": "string", "result": [1, "7"]}},
        {"status": "success"},
        [],
        None,
        7,
    ],
)
def test_nonsense_is_a_source_that_is_down(body: object):
    assert verdict(guard(), body).verdict is Verdict.SOURCE_DOWN


def against(handler: Handler, scenario: Callable[[aiohttp.ClientSession, str], Awaitable[T]]) -> T:
    """What a scenario returns, with a server on loopback at an URL."""

    async def run() -> T:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with aiohttp.ClientSession() as session:
                return await scenario(session, f"http://127.0.0.1:{runner.addresses[0][1]}/prefix/")
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def asked(handler: Handler, *guards: PrometheusGuard, seconds: float = 10.0) -> tuple[Decision, ...]:
    """The verdicts, with a server on loopback as each guard's Prometheus."""

    async def scenario(session: aiohttp.ClientSession, url: str) -> tuple[Decision, ...]:
        mine = [one.model_copy(update={"url": url}) for one in guards]
        return await ask(session, mine, seconds)

    return against(handler, scenario)


def test_each_guard_is_asked_its_own_query():
    seen: list[tuple[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        query = str((await request.post())["query"])
        seen.append((request.path, query))
        return web.json_response(vector("3" if query == "few" else "9"))

    few, many = asked(handler, guard(name="few", query="few"), guard(name="many", query="many"))
    assert (few.verdict, many.verdict) == (Verdict.PASS, Verdict.FAIL)
    assert sorted(seen) == [("/prefix/api/v1/query", "few"), ("/prefix/api/v1/query", "many")]


def test_a_refused_query_is_said_to_be_refused():
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"status": "error", "errorType": "bad_data", "error": "…"}, status=400)

    (decision,) = asked(handler, guard())
    assert decision.verdict is Verdict.SOURCE_DOWN
    assert "bad_data" in decision.sentence


def test_what_is_no_json_or_too_long_or_elsewhere_or_late_is_a_source_that_is_down():
    async def text(_: web.Request) -> web.Response:
        return web.Response(text="<html>welcome</html>")

    async def long(_: web.Request) -> web.Response:
        return web.Response(text=json.dumps(vector("3")) + " " * LARGEST_ANSWER)

    async def elsewhere(request: web.Request) -> web.Response:
        if request.path == "/elsewhere":
            return web.json_response(vector("3"))
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def late(_: web.Request) -> web.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody waits for so long")

    for handler in (text, long, elsewhere, cut):
        (decision,) = asked(handler, guard())
        assert decision.verdict is Verdict.SOURCE_DOWN, handler
    (decision,) = asked(late, guard(), seconds=0.2)
    assert decision.verdict is Verdict.SOURCE_DOWN
    assert "0.2 s" in decision.sentence


def test_a_prometheus_that_is_not_there_is_down_and_its_password_is_not_said():
    async def run() -> tuple[Decision, ...]:
        async with aiohttp.ClientSession() as session:
            return await ask(session, [guard(url="http://me:secret@127.0.0.1:9")])

    (decision,) = asyncio.run(run())
    assert decision.verdict is Verdict.SOURCE_DOWN
    assert "secret" not in decision.sentence


@pytest.mark.parametrize("edit", [{"max": 1}, {"min": 4}, {"query": "many"}])
@pytest.mark.parametrize("in_flight", [True, False])
def test_what_a_guard_found_is_no_verdict_of_what_it_is_edited_to(edit: dict[str, Any], in_flight: bool):
    before, may_answer = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        query = str((await request.post())["query"])
        before.set()
        await may_answer.wait()
        return web.json_response(vector("3" if query == "few" else "9"))

    async def scenario(session: aiohttp.ClientSession, url: str) -> tuple[Decision, Decision]:
        queries, written = Queries(), {"name": "tickets", "url": url, "query": "few", "max": 5}

        def found(**edited: Any) -> Decision:
            job = {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "cartpole"}}}
            spec = {"source": job, "guards": {"prometheus": [{**written, **edited}]}}
            (decision,) = queries.found(session, {"metadata": {"uid": "u"}, "spec": spec}, "trial")
            return decision

        found()
        await before.wait()
        if not in_flight:
            may_answer.set()
            await eventually(lambda: found().verdict is Verdict.PASS)
        at_once = found(**edit)
        may_answer.set()
        await eventually(lambda: found(**edit).verdict is not Verdict.SOURCE_DOWN)
        first = found(**edit)
        queries.forget("u")
        return at_once, first

    at_once, first = against(handler, scenario)
    assert at_once.verdict is Verdict.SOURCE_DOWN
    assert first.verdict is Verdict.FAIL


def test_prometheus_itself_is_understood(tmp_path: Path):
    queries = {
        "1 + 1": Verdict.PASS,
        "vector(3)": Verdict.PASS,
        "sum(vector(9))": Verdict.FAIL,
        "no_such_metric": Verdict.NOT_ENOUGH_EVIDENCE,
        "0 / 0": Verdict.NOT_ENOUGH_EVIDENCE,
        'vector(1) or label_replace(vector(2), "a", "b", "", "")': Verdict.SOURCE_DOWN,
        '"text"': Verdict.SOURCE_DOWN,
        "rate(": Verdict.SOURCE_DOWN,
    }

    async def run(url: str) -> tuple[Decision, ...]:
        async with aiohttp.ClientSession() as session:
            return await ask(session, [guard(url=url, query=query) for query in queries], 30.0)

    with scraping(tmp_path, [], "1s") as prometheus:
        found = asyncio.run(run(prometheus.address))
    assert [one.verdict for one in found] == [*queries.values()], found
