"""Two operators at once: the Lease decides, nothing is written twice, one stops before the other starts."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from lives import Life, begin, eventually, more_workers
from operators import SYSTEM, Chart, Operator
from proxy import Cut, Hang, HeldBack, Late, Plan, Proxy, Refuse, Request, Trouble
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


class SecondLookHeldBack(Plan):
    """Of an operator that begins to lead, the second list of jobs reaches the API server only when told."""

    def __init__(self) -> None:
        self.held, self.go_on = asyncio.Event(), asyncio.Event()

    def request(self, request: Request) -> Trouble | None:
        if request.verb == "list" and request.resource == "rltrainingjobs" and request.nth > 0:
            self.held.set()
            return HeldBack(self.go_on)
        return None


async def restless(life: Life) -> None:
    """Change the job's wishes for ever, so that whoever leads has something to write."""
    while True:
        for replicas in (3, 2):
            await life.edit({"rollouts": {"replicas": replicas}})
            await asyncio.sleep(0.3)


@dataclass
class Pair:
    """Two operators, each behind its own proxy, the first of which leads and has made a job's children."""

    on: Stage
    life: Life
    one: Proxy
    two: Proxy
    first: Operator

    async def another_leads(self) -> None:
        """Wait until the second writes; the first has stopped before."""
        await eventually("the second writes", self._second_writes, TAKEOVER)
        assert self.one.writes()[-1].at < self.two.writes()[0].at

    async def _second_writes(self) -> bool:
        return bool(self.two.writes())


@asynccontextmanager
async def pair(
    chart: Chart, logs: Path, clean: Life, namespace: str, plan: Plan | None = None
) -> AsyncGenerator[Pair]:
    """Both operators, `plan` between the first and the API server; at the end the job goes, and all of it."""
    async with stage(chart, logs) as on, on.proxy(plan) as one, on.proxy() as two:
        life = on.life(namespace, one, two)
        await life.settle_in()
        async with on.operator(one, "first", restart=False) as first:
            await eventually("the first leads", lambda: _asked(one, {"create", "update"}))
            async with on.operator(two, "second"):
                await eventually("the second was told that it does not lead", lambda: _asked(two, {"get"}))
                await begin(life)
                await life.becomes(clean.states[0], "the first leads")
                assert two.writes() == []
                yield Pair(on, life, one, two, first)
                await life.api.request("DELETE", life.path())
                await eventually("nothing left", lambda: _empty(life))


def test_a_leader_killed_is_followed_and_nothing_is_written_twice(clean: Life, chart: Chart, tmp_path: Path):
    async def killed() -> None:
        async with pair(chart, tmp_path, clean, "two-operators") as both:
            both.first.signal(signal.SIGKILL)
            await more_workers(both.life)
            await both.another_leads()
            await eventually("the second has no more to write", lambda: _quiet(both.life))
        assert max(both.life.creations().values()) == 1

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
        async with pair(chart, tmp_path, clean, f"cut-off-{name}", plan) as both:
            plan.begun = True
            edits = asyncio.create_task(restless(both.life))
            await both.another_leads()
            await eventually("the first ends", lambda: _ended(both.first))
            edits.cancel()
            assert both.one.writes()[-1].at < both.two.writes()[0].at

    asyncio.run(cut_off())


def test_a_leader_that_stood_still_writes_nothing_when_it_wakes_up(clean: Life, chart: Chart, tmp_path: Path):
    async def frozen() -> None:
        async with pair(chart, tmp_path, clean, "stood-still") as both:
            edits = asyncio.create_task(restless(both.life))
            both.first.signal(signal.SIGSTOP)
            await both.another_leads()
            both.first.signal(signal.SIGCONT)
            await eventually("the first ends", lambda: _ended(both.first))
            edits.cancel()
            assert both.one.writes()[-1].at < both.two.writes()[0].at

    asyncio.run(frozen())


def test_a_leader_whose_lease_is_deleted_gets_it_back_and_no_other_leads_meanwhile(
    clean: Life, chart: Chart, tmp_path: Path
):
    plan = LeaseOutOfReach(Refuse(503))

    async def deleted() -> None:
        async with pair(chart, tmp_path, clean, "lease-deleted", plan) as both:
            plan.begun = True
            asked = len(both.two.records)
            await both.on.api.request("DELETE", LEASE.path(SYSTEM, LEASE_NAME))
            await eventually("the second looks", lambda: _looked(both.two, asked))
            plan.begun = False
            renewed = len(both.one.records)
            await eventually("the first has it again", lambda: _has_lease(both.one, renewed))
            await more_workers(both.life)
            assert both.two.writes() == []
            assert both.first.running

    asyncio.run(deleted())


def test_a_job_deleted_while_a_new_leader_takes_stock_is_not_made_again(
    clean: Life, chart: Chart, tmp_path: Path
):
    plan = SecondLookHeldBack()

    async def taken_over() -> None:
        async with stage(chart, tmp_path) as on, on.proxy() as one, on.proxy(plan) as two:
            life, witness = on.life("deleted-meanwhile", one), on.life("witness", two)
            await life.settle_in()
            await witness.settle_in()
            async with on.operator(one, "first", restart=False) as first:
                await begin(life)
                await life.becomes(clean.states[0], "the first leads")
                first.signal(signal.SIGTERM)
                await eventually("the first ends", lambda: _ended(first))
            async with on.operator(two, "second"):
                async with asyncio.timeout(TAKEOVER):
                    await plan.held.wait()
                await life.api.request("DELETE", life.path())
                await eventually("nothing left", lambda: _empty(life))
                plan.go_on.set()
                await begin(witness)
                await witness.becomes(clean.states[0], "the second leads")
        assert two.creations(life.namespace) == {}

    asyncio.run(taken_over())


async def _asked(proxy: Proxy, verbs: set[str]) -> bool:
    return any(
        record.request.resource == "leases" and record.request.verb in verbs for record in proxy.records
    )


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


async def _ended(operator: Operator) -> bool:
    return not operator.running


async def _empty(life: Life) -> bool:
    return await life.state() == {}


async def _quiet(life: Life) -> bool:
    return life.quiet()
