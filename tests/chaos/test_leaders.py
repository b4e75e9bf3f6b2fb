"""Two operators at once: the Lease decides, nothing is written twice, one stops before the other starts."""

import asyncio
import signal
from pathlib import Path

import pytest
from lives import Life, begin, eventually, more_workers
from operators import Chart, Operator
from proxy import Cut, Hang, Plan, Proxy, Request, Trouble
from stage import Stage, stage

TAKEOVER = 60.0


class LeaseOutOfReach(Plan):
    """From some moment on, only the Lease can't be reached: the leader could still write everything else."""

    def __init__(self, trouble: Trouble) -> None:
        self.begun = False
        self._trouble = trouble

    def request(self, request: Request) -> Trouble | None:
        return self._trouble if self.begun and request.resource == "leases" else None


async def started(on: Stage, operator: Operator, proxy: Proxy, *, leading: bool) -> None:
    """Wait until the operator leads, or has been told by the Lease that it does not."""

    async def seen() -> bool:
        verbs = {record.request.verb for record in proxy.records if record.request.resource == "leases"}
        return bool(verbs & {"create", "update"}) if leading else "get" in verbs

    await eventually(f"{operator.name} leads: {leading}", seen)


async def restless(life: Life) -> None:
    """Change the job's wishes for ever, so that whoever leads has something to write."""
    while True:
        for replicas in (3, 2):
            await life.edit({"rollouts": {"replicas": replicas}})
            await asyncio.sleep(0.3)


def test_a_leader_killed_is_followed_and_nothing_is_written_twice(clean: Life, chart: Chart, tmp_path: Path):
    async def killed() -> None:
        async with stage(chart, tmp_path) as on, on.proxy() as one, on.proxy() as two:
            life = on.life("two-operators", one, two)
            await life.settle_in()
            async with on.operator(one, "first", restart=False) as first:
                await started(on, first, one, leading=True)
                async with on.operator(two, "second") as second:
                    await started(on, second, two, leading=False)
                    await begin(life)
                    await life.becomes(clean.states[0], "the first leads")
                    assert two.writes() == []
                    first.signal(signal.SIGKILL)
                    await more_workers(life)
                    await eventually("the second writes", lambda: _wrote(two), TAKEOVER)
                    await eventually("the second has no more to write", lambda: _quiet(life))
                    await life.api.request("DELETE", life.path())
                    await eventually("nothing left", lambda: _empty(life))
                    assert one.writes()[-1].at < two.writes()[0].at
        assert max(life.creations().values()) == 1

    asyncio.run(killed())


@pytest.mark.parametrize("trouble", [Cut("before"), Hang()], ids=["cut", "silent"])
def test_a_leader_that_can_not_renew_stops_before_the_other_starts(
    trouble: Trouble, clean: Life, chart: Chart, tmp_path: Path
):
    plan = LeaseOutOfReach(trouble)

    async def cut_off() -> None:
        async with stage(chart, tmp_path) as on, on.proxy(plan) as one, on.proxy() as two:
            life = on.life(f"cut-off-{type(trouble).__name__.lower()}", one, two)
            await life.settle_in()
            async with on.operator(one, "first", restart=False) as first:
                await started(on, first, one, leading=True)
                async with on.operator(two, "second"):
                    await begin(life)
                    await life.becomes(clean.states[0], "the first leads")
                    plan.begun = True
                    edits = asyncio.create_task(restless(life))
                    await eventually("the second writes", lambda: _wrote(two), TAKEOVER)
                    edits.cancel()
                    assert one.writes()[-1].at < two.writes()[0].at
                    await eventually("the first ends", lambda: _ended(first))
                    await life.api.request("DELETE", life.path())
                    await eventually("nothing left", lambda: _empty(life))

    asyncio.run(cut_off())


async def _wrote(proxy: Proxy) -> bool:
    return bool(proxy.writes())


async def _ended(operator: Operator) -> bool:
    return not operator.running


async def _empty(life: Life) -> bool:
    return await life.state() == {}


async def _quiet(life: Life) -> bool:
    return life.quiet()
