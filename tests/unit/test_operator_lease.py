"""The Lease as a lock, against a small API server."""

import json

import pytest
from fakeapi import FakeServer, against
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from ratchet_operator.apiserver import ApiServer
from ratchet_operator.kinds import (
    LEASE,
)
from ratchet_operator.leader import LEASE_NAME, Lock


def record(identity: str) -> LeaderElectionRecord:
    return LeaderElectionRecord(identity, "15", "now", "now")


def test_the_lease_is_taken_renewed_and_given_back():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        lock = Lock(api, "team", "one")
        found, failure = await lock.get(LEASE_NAME, "team")
        assert (found, json.loads(failure.body)["code"]) == (False, 404)
        assert await lock.create(LEASE_NAME, "team", record("one"))
        first = fake.objects[LEASE.path("team", LEASE_NAME)]["spec"]
        await lock.get(LEASE_NAME, "team")
        assert await lock.update(LEASE_NAME, "team", record("one"))
        renewed = fake.objects[LEASE.path("team", LEASE_NAME)]["spec"]
        assert renewed["acquireTime"] == first["acquireTime"]
        assert renewed["renewTime"] >= first["renewTime"]

        await lock.release()

        assert fake.objects[LEASE.path("team", LEASE_NAME)]["spec"]["holderIdentity"] == ""
        other = Lock(api, "team", "two")
        found, held = await other.get(LEASE_NAME, "team")
        assert found
        assert held.holder_identity is None

    against(scenario)


def test_of_two_that_read_the_same_lease_one_gets_it():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        one, two = Lock(api, "team", "one"), Lock(api, "team", "two")
        await one.create(LEASE_NAME, "team", record("nobody"))
        await one.get(LEASE_NAME, "team")
        await two.get(LEASE_NAME, "team")

        assert await one.update(LEASE_NAME, "team", record("one"))
        assert not await two.update(LEASE_NAME, "team", record("two"))

    against(scenario)


def test_a_lease_that_somebody_deleted_is_still_its_holders():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        one, two = Lock(api, "team", "one"), Lock(api, "team", "two")
        assert await one.create(LEASE_NAME, "team", record("one"))
        await two.get(LEASE_NAME, "team")
        fake.objects.clear()

        for lock in (one, two):
            assert not (await lock.get(LEASE_NAME, "team"))[0]
        assert not await two.create(LEASE_NAME, "team", record("two"))
        assert await one.create(LEASE_NAME, "team", record("one"))

    against(scenario)


@pytest.mark.parametrize("status", [403, 500])
def test_a_lease_that_can_not_be_read_is_a_failure_and_not_an_exception(status):
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        fake.fail["GET", LEASE.path("team", LEASE_NAME)] = [(status, "no")]

        found, failure = await Lock(api, "team", "one").get(LEASE_NAME, "team")

        assert not found
        assert failure.status == status

    against(scenario)
