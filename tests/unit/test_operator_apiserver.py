"""The client of the API server, and what it is asked of Secrets."""

import asyncio

import pytest
from fakeapi import FakeServer, against, eventually, executor, named, owned
from kubernetes.aio.client.configuration import Configuration
from ratchet_operator import apiserver
from ratchet_operator.apiserver import ApiError, ApiServer, Bucket
from ratchet_operator.kinds import (
    CONFIG_MAP,
    SECRET,
    SERVICE,
    TRAINING_JOB,
    Kind,
)
from ratchet_operator.metrics import REGISTRY
from ratchet_operator.observe import SecretSightings


def test_no_answer_is_an_api_error_too():
    async def scenario() -> None:
        configuration = Configuration()
        configuration.host = "http://127.0.0.1:1"
        async with ApiServer(configuration, Bucket(1, 1, asyncio.get_running_loop().time)) as api:
            with pytest.raises(ApiError) as raised:
                await api.get(SERVICE, "team", "s")
            assert raised.value.status == 0

    asyncio.run(scenario())


def test_the_bucket_lets_a_burst_through_and_then_keeps_the_rate():
    now = [0.0]
    bucket = Bucket(10, 3, lambda: now[0])

    assert [bucket.reserve() for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    now[0] = 10
    assert bucket.reserve() == 0


def test_what_may_not_write_any_more_sends_no_write_and_still_reads():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        service = named(SERVICE, "s")
        api.may_write = lambda: False
        for write in (
            api.create(SERVICE, service),
            api.apply(SERVICE, service),
            api.patch_status(TRAINING_JOB, "team", "walker", {}),
            api.amend(SERVICE, "team", "s", []),
            api.delete(SERVICE, "team", "s", "uid"),
        ):
            with pytest.raises(ApiError, match="another operator may lead"):
                await write
        assert await api.get(SERVICE, "team", "s") is None
        assert [method for method, _ in fake.log] == ["GET"]
        api.may_write = lambda: True
        await api.create(SERVICE, service)

    against(scenario)


def test_a_write_that_waited_for_a_connection_is_not_sent_once_another_may_lead(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(apiserver, "AT_ONCE", 1)
    of_services = {"verb": "create", "kind": SERVICE.kind}

    def written() -> float:
        return REGISTRY.get_sample_value("ratchet_api_writes_total", of_services) or 0

    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        at = SERVICE.path("team", "slow")
        fake.stalled[at] = asyncio.Event()
        slow = asyncio.create_task(api.get(SERVICE, "team", "slow"))
        await eventually(lambda: bool(fake.log))
        before = written()
        write = asyncio.create_task(api.create(SERVICE, named(SERVICE, "s")))
        await eventually(lambda: written() > before)

        api.may_write = lambda: False
        fake.stalled[at].set()

        with pytest.raises(ApiError, match="another operator may lead"):
            await write
        assert await slow is None
        async with asyncio.timeout(10):
            assert await api.get(SERVICE, "team", "s") is None
        assert [method for method, _ in fake.log] == ["GET", "GET"]

    against(scenario)


def test_watches_leave_the_connections_to_requests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apiserver, "AT_ONCE", 1)

    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        end = asyncio.Event()
        fake.stalled = {kind.path("team"): end for kind in (SERVICE, CONFIG_MAP)}

        async def watch(kind: Kind) -> None:
            async for _ in api.watch(kind, "team"):
                pass

        watches = [asyncio.create_task(watch(kind)) for kind in (SERVICE, CONFIG_MAP)]
        await eventually(lambda: len(fake.log) == 2)

        async with asyncio.timeout(10):
            assert await api.get(SERVICE, "team", "s") is None

        end.set()
        await asyncio.gather(*watches, return_exceptions=True)

    against(scenario)


def test_a_secret_of_another_owner_is_not_ours():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        _, _, sightings = executor(api)
        fake.objects[SECRET.path("team", "s")] = named(SECRET, "s") | {
            "metadata": {"uid": "1", "ownerReferences": [{"uid": "earlier-job", "controller": True}]}
        }

        assert await sightings.uid("team", "s", "job-uid", in_doubt=False) is None
        assert await sightings.uid("team", "s", None, in_doubt=False) == "1"
        assert await sightings.uid("team", "absent", None, in_doubt=False) is None

    against(scenario)


def test_what_was_made_while_a_question_was_on_its_way_is_not_forgotten_for_its_answer():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        sightings = SecretSightings(api)
        at = SECRET.path("team", "s")
        fake.stalled[at] = asyncio.Event()
        asked = asyncio.create_task(sightings.uid("team", "s", None, in_doubt=False))
        await eventually(lambda: bool(fake.log))

        sightings.put("team", "s", {"metadata": {"uid": "made"}})
        fake.stalled[at].set()

        assert await asked == "made"
        assert await sightings.uid("team", "s", None, in_doubt=False) == "made"
        assert len(fake.log) == 1

    against(scenario)


def test_what_was_seen_of_secrets_is_forgotten_once_nobody_would_trust_it():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        for trusted, left in ((240.0, 1), (-1.0, 0)):
            sightings = SecretSightings(api, trusted)
            sightings.put("team", "s", owned(SECRET, "s"))

            sightings.prune()

            assert len(sightings) == left

    against(scenario)
