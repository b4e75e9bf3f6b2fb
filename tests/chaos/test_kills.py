"""The operator is killed after each of its writes, before it learns that it was made, and starts again."""

import asyncio
from pathlib import Path

from lives import Life
from operators import Chart, Operator
from proxy import Plan, Request
from stage import stage

KILLS_FOR_A_LIFE = 30
"""A life has so many writes at least; fewer kills would mean that the plan does not see them."""


class KilledAfterEachWrite(Plan):
    """Kills as soon as the API server has executed a write; Events and the Lease are part of no state."""

    operator: Operator
    kills: int = 0

    def executed(self, request: Request) -> None:
        if request.resource not in ("leases", "events"):
            self.kills += 1
            self.operator.kill()


def test_the_operator_killed_after_the_nth_write_for_every_n(clean: Life, chart: Chart, tmp_path: Path):
    plan = KilledAfterEachWrite()

    async def killed() -> Life:
        async with (
            stage(chart, tmp_path) as on,
            on.proxy(plan, one_write_at_a_time=True) as proxy,
            on.operator(proxy) as plan.operator,
        ):
            life = on.life("killed", proxy)
            await life.live(clean)
            return life

    life = asyncio.run(killed())
    assert plan.kills >= KILLS_FOR_A_LIFE
    assert life.creations() == clean.creations()
    assert life.pods() == clean.pods()
