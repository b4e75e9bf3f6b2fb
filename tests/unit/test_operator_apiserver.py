"""The client of the API server, and what it is asked of Secrets."""

import asyncio

import pytest
from fakeapi import FakeServer, against, executor, named, owned
from kubernetes.aio.client.configuration import Configuration
from ratchet_operator.apiserver import ApiError, ApiServer, Bucket
from ratchet_operator.kinds import (
    SECRET,
    SERVICE,
    TRAINING_JOB,
)
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


def test_what_was_seen_of_secrets_is_forgotten_once_nobody_would_trust_it():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        for trusted, left in ((240.0, 1), (-1.0, 0)):
            sightings = SecretSightings(api, trusted)
            sightings.put("team", "s", owned(SECRET, "s"))

            sightings.prune()

            assert len(sightings) == left

    against(scenario)
