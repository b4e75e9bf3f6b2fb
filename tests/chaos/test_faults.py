"""What network and API server do to the operator changes nothing for a job, and does not end the operator:
same states, same creations.
"""

import asyncio
from pathlib import Path

import pytest
from faults import TROUBLES, plan_of
from lives import Life
from operators import Chart
from stage import stage

JOBS = 2


def test_a_life_without_trouble_makes_each_object_once(clean: Life):
    again = {"replicasets"}  # a pool's workers go when it is suspended, and come again
    assert {
        name: count for (kind, name), count in clean.creations().items() if count > 1 and kind not in again
    } == {}
    assert {record.status for proxy in clean.proxies for record in proxy.writes()} <= {200, 201}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_changes_nothing_for_a_job(name: str, clean: Life, chart: Chart, tmp_path: Path):
    plan = plan_of(name)

    async def troubled() -> list[Life]:
        async with stage(chart, tmp_path) as on, on.proxy(plan) as proxy, on.operator(proxy) as operator:
            lives = [on.life(f"trouble-{plan.seed}-{number}", proxy) for number in range(JOBS)]
            await asyncio.gather(*(life.live(clean) for life in lives))
            assert operator.codes == [], "no trouble of the network ends the operator"
            return lives

    lives = asyncio.run(troubled())
    assert plan.unmade == set(), plan.made
    for life in lives:
        assert life.creations() == clean.creations(), (life.namespace, plan.made)
        assert life.pods() == clean.pods(), (life.namespace, plan.made)
