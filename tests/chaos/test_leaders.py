"""Two operators at once: the Lease decides, nothing is written twice, one stops before the other starts."""

import asyncio
import signal
from pathlib import Path

import pytest
from lives import Life, begin, eventually, more_workers
from operators import SYSTEM, Chart, Operator
from proxy import Cut, Hang, Late, Plan, Proxy, Refuse, Request, Trouble
from ratchet_operator.kinds import LEASE
from ratchet_operator.leader import LEASE_NAME
from stage import Stage, stage

TAKEOVER = 60.0


class LeaseOutOfReach(Plan):
    """From some moment on, only the Lease can't be reached: the leader could still write everything else."""

    def __init__(self, trouble: Trouble) -> None:
        self.begun = False
        self._trouble = trouble

    def request(self, request: Request) -> Trouble | None:
        return self._trouble if self.begun and request.resource == "leases" else None


class LastRenewalAnsweredLate(LeaseOutOfReach):
    """The other one sees the leader's last renewal long before the leader hears that it was one."""

    def __init__(self) -> None:
        super().__init__(Hang())
        self._answered = False

    def request(self, request: Request) -> Trouble | None:
        if self._answered or request.verb != "update":
            return super().request(request) if self._answered else None
        self._answered = self.begun and request.resource == "leases"
        return Late(9.0) if self._answered else None


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


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("cut", LeaseOutOfReach(Cut("before"))),
        ("silent", LeaseOutOfReach(Hang())),
        ("late", LastRenewalAnsweredLate()),
    ],
    ids=["cut", "silent", "late"],
)
def test_a_leader_that_can_not_renew_stops_before_the_other_starts(
    name: str, plan: LeaseOutOfReach, clean: Life, chart: Chart, tmp_path: Path
):
    async def cut_off() -> None:
        async with stage(chart, tmp_path) as on, on.proxy(plan) as one, on.proxy() as two:
            life = on.life(f"cut-off-{name}", one, two)
            await life.settle_in()
            async with on.operator(one, "first", restart=False) as first:
                await started(on, first, one, leading=True)
                async with on.operator(two, "second") as second:
                    await started(on, second, two, leading=False)
                    await begin(life)
                    await life.becomes(clean.states[0], "the first leads")
                    plan.begun = True
                    edits = asyncio.create_task(restless(life))
                    await eventually("the second writes", lambda: _wrote(two), TAKEOVER)
                    await eventually("the first ends", lambda: _ended(first))
                    edits.cancel()
                    assert one.writes()[-1].at < two.writes()[0].at
                    await life.api.request("DELETE", life.path())
                    await eventually("nothing left", lambda: _empty(life))

    asyncio.run(cut_off())


def test_a_leader_whose_lease_is_deleted_gets_it_back_and_no_other_leads_meanwhile(
    clean: Life, chart: Chart, tmp_path: Path
):
    plan = LeaseOutOfReach(Refuse(503))

    async def deleted() -> None:
        async with stage(chart, tmp_path) as on, on.proxy(plan) as one, on.proxy() as two:
            life = on.life("lease-deleted", one, two)
            await life.settle_in()
            async with on.operator(one, "first", restart=False) as first:
                await started(on, first, one, leading=True)
                async with on.operator(two, "second") as second:
                    await started(on, second, two, leading=False)
                    await begin(life)
                    await life.becomes(clean.states[0], "the first leads")
                    plan.begun = True
                    asked = len(two.records)
                    await on.api.request("DELETE", LEASE.path(SYSTEM, LEASE_NAME))
                    await eventually("the second looks", lambda: _looked(two, asked))
                    plan.begun = False
                    renewed = len(one.records)
                    await eventually("the first has it again", lambda: _has_lease(one, renewed))
                    await more_workers(life)
                    assert two.writes() == []
                    assert first.running
                    await life.api.request("DELETE", life.path())
                    await eventually("nothing left", lambda: _empty(life))

    asyncio.run(deleted())


async def _looked(proxy: Proxy, after: int) -> bool:
    """Whether the operator was told that there is no Lease, and has asked again since."""
    answers = [record for record in proxy.records[after:] if record.request.resource == "leases"]
    missing = [record.at for record in answers if record.status == 404]
    return any(record.at > missing[0] for record in answers) if missing else False


async def _has_lease(proxy: Proxy, after: int) -> bool:
    return any(
        record.request.resource == "leases" and record.request.writes and record.status < 300
        for record in proxy.records[after:]
    )


async def _wrote(proxy: Proxy) -> bool:
    return bool(proxy.writes())


async def _ended(operator: Operator) -> bool:
    return not operator.running


async def _empty(life: Life) -> bool:
    return await life.state() == {}


async def _quiet(life: Life) -> bool:
    return life.quiet()
