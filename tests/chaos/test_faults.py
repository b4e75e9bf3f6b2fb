"""What network and API server do to the operator changes nothing for a job, and does not end the operator:
same states, same creations.
"""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from faults import CUTS, EXPIRED, LIES, REFUSALS, STOPS, Seeded
from lives import Life
from operators import Chart
from proxy import EventTrouble, Stale, Trouble
from stage import stage

STALE: dict[Trouble, float] = {Stale(): 0.3}
TROUBLES: dict[str, tuple[dict[Trouble, float], dict[EventTrouble, float]]] = {
    "requests refused, cut, and answered from long ago": ({**REFUSALS, **CUTS, **STALE}, {}),
    "events dropped, late, reordered; watches ended": (EXPIRED, {**LIES, **STOPS}),
    "everything": ({**REFUSALS, **CUTS, **STALE, **EXPIRED}, {**LIES, **STOPS}),
}
JOBS = 2


def test_a_life_without_trouble_makes_each_object_once(clean: Life):
    again = {"replicasets"}  # a pool's workers go when it is suspended, and come again
    assert {
        name: count for (kind, name), count in clean.creations().items() if count > 1 and kind not in again
    } == {}
    assert {record.status for proxy in clean.proxies for record in proxy.writes()} <= {200, 201}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_changes_nothing_for_a_job(name: str, clean: Life, chart: Chart, tmp_path: Path):
    seed = list(TROUBLES).index(name)
    plan = Seeded(seed, *TROUBLES[name])

    async def troubled() -> tuple[list[Life], Counter[str]]:
        async with stage(chart, tmp_path) as on, on.proxy(plan) as proxy, on.operator(proxy) as operator:
            lives = [on.life(f"trouble-{seed}-{number}", proxy) for number in range(JOBS)]
            await asyncio.gather(*(life.live(clean) for life in lives))
            assert operator.codes == [], "no trouble of the network ends the operator"
            return lives, proxy.made

    lives, made = asyncio.run(troubled())
    assert made, "no trouble was made"
    for life in lives:
        assert life.creations() == clean.creations(), (life.namespace, made)
        assert life.pods() == clean.pods(), (life.namespace, made)
