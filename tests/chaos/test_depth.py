"""What a schema leaves open may be nested as deep as the API server takes it."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lives import SPEC, Json, Life, begin, eventually
from operators import Chart
from proxy import Proxy
from ratchet_operator.kinds import API_VERSION
from stage import stage

DEEPER_THAN_JSON = 2_000  # than Python's json and orjson go unless they are told to


@pytest.fixture
def deep() -> Iterator[Json]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEPER_THAN_JSON * 4)
    nested: Json = {}
    for _ in range(DEEPER_THAN_JSON):
        nested = {"a": nested}
    yield nested
    sys.setrecursionlimit(before)


def test_a_job_that_is_too_deep_to_be_read_keeps_nobody_elses_waiting(
    deep: Json, clean: Life, chart: Chart, tmp_path: Path
):
    async def lives() -> None:
        async with stage(chart, tmp_path) as on, on.proxy() as proxy:
            life = on.life("beside-a-deep-one", proxy)
            await life.settle_in()
            spec = {**SPEC, "environment": {"id": "CartPole-v1", "kwargs": deep}}
            job = {"apiVersion": API_VERSION, "kind": "RLTrainingJob", "metadata": {"name": "deep"}}

            async def made(name: str) -> None:
                named = {**job, "metadata": {"name": name}, "spec": spec}
                assert await life.api.request("POST", life.path(name=""), named) is not None

            await made("listed")
            async with on.operator(proxy, restart=False) as operator:
                await eventually("it leads", lambda: _leads(proxy))
                await made("watched")
                await begin(life)
                await life.becomes(clean.states[0], "beside two that are too deep")
                assert operator.running
            for name in ("listed", "watched"):
                await life.api.request("DELETE", life.path(name=name))

    asyncio.run(lives())


async def _leads(proxy: Proxy) -> bool:
    return any(one.request.resource == "leases" and one.request.writes for one in proxy.records)
