"""Plans carried out against a small API server: in which order, by whom refused, told once."""

import itertools
from typing import Any

import pytest
from fakeapi import JOB, KEY, NOW, FakeServer, against, executor, named, owned
from ratchet_operator.apiserver import PARTIAL, ApiError, ApiServer
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    SECRET,
    SERVICE,
    TRAINING_JOB,
    uid_of,
)
from ratchet_operator.plan import ABSENT, Apply, CreateRedisSecret, Delete, Occurrence, Plan
from ratchet_operator.workqueue import FIRST_BACKOFF, LONGEST_BACKOFF

SECRET_PLAN = CreateRedisSecret(
    "team", "job-redis", "job-uid", "job-redis", {}, {"uid": "job-uid", "controller": True}
)


def test_what_was_applied_is_in_the_cache_at_once():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, cache, _ = executor(api)
        plan = Plan(
            apply=(
                Apply(SERVICE, named(SERVICE, "s"), "absent"),
                Apply(CONFIG_MAP, named(CONFIG_MAP, "c"), "absent"),
            )
        )

        assert await execute.execute(KEY, JOB, plan, NOW) is None

        assert cache[SERVICE].get("team", "s") is not None
        assert cache[CONFIG_MAP].get("team", "c") is not None

    against(scenario)


def test_what_starts_by_the_ledger_waits_for_it():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, _, _ = executor(api)
        fake.fail["PATCH", CONFIG_MAP.path("team", "c")] = [(409, "the object has been modified")]
        plan = Plan(
            apply=(
                Apply(DEPLOYMENT, named(DEPLOYMENT, "d"), "spec"),
                Apply(CONFIG_MAP, named(CONFIG_MAP, "c"), "metadata.annotations", "7"),
            )
        )

        with pytest.raises(ApiError):
            await execute.execute(KEY, JOB, plan, NOW)

        assert DEPLOYMENT.path("team", "d") not in fake.objects

    against(scenario)


def test_a_refused_child_is_said_and_does_not_stop_the_others():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, cache, _ = executor(api)
        fake.fail["PATCH", "/apis/apps/v1/namespaces/team/deployments/d"] = [(422, "memory: Invalid value")]
        plan = Plan(
            apply=(
                Apply(DEPLOYMENT, named(DEPLOYMENT, "d"), "absent"),
                Apply(SERVICE, named(SERVICE, "s"), "absent"),
            ),
            status={"attempt": 1},
        )
        fake.objects[TRAINING_JOB.path("team", "job")] = JOB

        refused = await execute.execute(KEY, JOB, plan, NOW)

        assert refused == "Deployment d: memory: Invalid value"
        assert cache[SERVICE].get("team", "s") is not None
        assert fake.objects[TRAINING_JOB.path("team", "job")]["status"] == {"attempt": 1}

    against(scenario)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_an_error_to_be_tried_again(status):
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, _, _ = executor(api)
        fake.fail["PATCH", SERVICE.path("team", "s")] = [(status, "later")]

        with pytest.raises(ApiError) as raised:
            await execute.execute(KEY, JOB, Plan(apply=(Apply(SERVICE, named(SERVICE, "s"), "absent"),)), NOW)

        assert raised.value.status == status

    against(scenario)


def test_a_lost_race_for_the_ledger_teaches_the_cache_the_truth():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, cache, _ = executor(api)
        newer = named(CONFIG_MAP, "c")
        newer["metadata"] |= {"uid": "u", "resourceVersion": "7", "annotations": {"ledger": "newer"}}
        fake.objects[CONFIG_MAP.path("team", "c")] = newer

        with pytest.raises(ApiError):
            await execute.execute(
                KEY, JOB, Plan(apply=(Apply(CONFIG_MAP, named(CONFIG_MAP, "c"), "x", version="5"),)), NOW
            )

        known = cache[CONFIG_MAP].get("team", "c")
        assert known is not None
        assert known["metadata"]["annotations"] == {"ledger": "newer"}

    against(scenario)


def test_a_password_is_drawn_once_and_its_content_is_never_asked_for():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, _, sightings = executor(api)
        await execute.execute(KEY, JOB, Plan(secrets=(SECRET_PLAN,)), NOW)
        made = fake.objects[SECRET.path("team", "job-redis")]
        made["metadata"]["ownerReferences"] = [{"uid": "job-uid", "controller": True}]
        await execute.execute(KEY, JOB, Plan(secrets=(SECRET_PLAN,)), NOW)

        uid = await sightings.uid("team", "job-redis", "job-uid", in_doubt=False)

        assert uid == uid_of(made)
        assert fake.objects[SECRET.path("team", "job-redis")] == made
        password = made["stringData"]["REDIS_URL"].split(":")[2].partition("@")[0]
        assert len(password) >= 24
        secret_requests = [
            accept for (_, path), accept in zip(fake.log, fake.accepted, strict=True) if "/secrets" in path
        ]
        assert set(secret_requests) == {PARTIAL}

    against(scenario)


def test_a_secret_that_someone_else_made_is_said_and_does_not_stop_the_status():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, _, _ = executor(api)
        fake.objects[SECRET.path("team", "job-redis")] = named(SECRET, "job-redis")
        fake.objects[TRAINING_JOB.path("team", "job")] = JOB

        plan = Plan(secrets=(SECRET_PLAN,), status={"attempt": 1})
        refused = await execute.execute(KEY, JOB, plan, NOW)

        assert refused == "Secret job-redis exists and belongs to someone else: rename it, or its owner"
        assert fake.objects[SECRET.path("team", "job-redis")] == named(SECRET, "job-redis")
        assert fake.objects[TRAINING_JOB.path("team", "job")]["status"] == {"attempt": 1}

    against(scenario)


@pytest.mark.parametrize("owners", [[], [{"uid": "another-job", "controller": True}]])
def test_what_someone_else_made_under_a_childs_name_is_left_alone(owners: list[dict[str, Any]]):
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, cache, _ = executor(api)
        theirs = named(SERVICE, "s")
        theirs["metadata"] |= {"uid": "theirs", "resourceVersion": "7", "ownerReferences": owners}
        fake.objects[SERVICE.path("team", "s")] = theirs
        fake.objects[TRAINING_JOB.path("team", "job")] = JOB

        plan = Plan(apply=(Apply(SERVICE, owned(SERVICE, "s"), ABSENT),), status={"attempt": 1})
        refused = await execute.execute(KEY, JOB, plan, NOW)

        assert refused == "Service s exists and belongs to someone else: rename it, or this RLTrainingJob"
        assert fake.objects[SERVICE.path("team", "s")] == theirs
        assert cache[SERVICE].get("team", "s") is None
        assert fake.objects[TRAINING_JOB.path("team", "job")]["status"] == {"attempt": 1}

    against(scenario)


def test_a_name_that_a_stranger_has_is_tried_more_and_more_rarely_until_it_is_free():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        now = [0.0]
        execute, cache, _ = executor(api, lambda: now[0])
        theirs = named(SERVICE, "s")
        theirs["metadata"] |= {"uid": "theirs", "resourceVersion": "7"}
        fake.objects[SERVICE.path("team", "s")] = theirs
        plan = Plan(apply=(Apply(SERVICE, owned(SERVICE, "s"), ABSENT),))
        tried: list[float] = []
        for tenth in range(100):
            now[0] = tenth / 10
            asked = len(fake.log)
            assert "belongs to someone else" in (await execute.execute(KEY, JOB, plan, NOW) or "")
            tried += [now[0]] if len(fake.log) > asked else []

        pauses = [later - sooner for sooner, later in itertools.pairwise(tried)]
        assert pauses == pytest.approx([FIRST_BACKOFF * 2**number for number in range(5)], abs=0.11)
        del fake.objects[SERVICE.path("team", "s")]
        now[0] += LONGEST_BACKOFF
        assert await execute.execute(KEY, JOB, plan, NOW) is None
        assert cache[SERVICE].get("team", "s") is not None

    against(scenario)


def test_a_successor_of_the_same_name_is_not_kept_waiting_by_what_its_predecessor_met():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, _, _ = executor(api, lambda: 0.0)
        service = SERVICE.path("team", "s")
        fake.objects[service] = {**named(SERVICE, "s"), "metadata": {"uid": "theirs", "resourceVersion": "7"}}
        plan = Plan(apply=(Apply(SERVICE, owned(SERVICE, "s"), ABSENT),))
        assert await execute.execute(KEY, JOB, plan, NOW)
        del fake.objects[service]

        successors = owned(SERVICE, "s")
        successors["metadata"]["ownerReferences"][0]["uid"] = "another"

        assert await execute.execute(KEY, JOB, Plan(apply=(Apply(SERVICE, successors, ABSENT),)), NOW) is None

    against(scenario)


def test_a_child_that_lost_its_label_gets_it_back():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, cache, _ = executor(api)
        bare = owned(SERVICE, "s")
        bare["metadata"] |= {"uid": "ours", "resourceVersion": "7"}
        fake.objects[SERVICE.path("team", "s")] = bare
        wanted = owned(SERVICE, "s")
        wanted["metadata"]["labels"] = {"ratchet.dev/job": "job"}

        assert await execute.execute(KEY, JOB, Plan(apply=(Apply(SERVICE, wanted, ABSENT),)), NOW) is None

        live = cache[SERVICE].get("team", "s")
        assert live is not None
        assert (uid_of(live), live["metadata"]["labels"]) == ("ours", {"ratchet.dev/job": "job"})

    against(scenario)


def test_what_is_deleted_is_forgotten_and_a_successor_is_left_alone():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, cache, _ = executor(api)
        live = await api.apply(SERVICE, named(SERVICE, "s"))
        cache[SERVICE].put(live)
        await execute.execute(KEY, JOB, Plan(delete=(Delete(SERVICE, "team", "s", uid_of(live), "x"),)), NOW)
        assert fake.objects == {}
        assert cache[SERVICE].get("team", "s") is None

        await api.apply(SERVICE, named(SERVICE, "s"))
        await execute.execute(KEY, JOB, Plan(delete=(Delete(SERVICE, "team", "s", uid_of(live), "x"),)), NOW)
        assert len(fake.objects) == 1

    against(scenario)


def test_a_delete_that_conflicts_with_something_else_is_tried_again():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, cache, _ = executor(api)
        live = await api.apply(SERVICE, named(SERVICE, "s"))
        cache[SERVICE].put(live)
        plan = Plan(delete=(Delete(SERVICE, "team", "s", uid_of(live), "x"),))
        fake.fail["DELETE", SERVICE.path("team", "s")] = [(409, "the object has been modified")]
        with pytest.raises(ApiError):
            await execute.execute(KEY, JOB, plan, NOW)
        assert cache[SERVICE].get("team", "s") == live
        await execute.execute(KEY, JOB, plan, NOW)
        assert fake.objects == {}

    against(scenario)


def test_an_event_is_told_once_however_often_the_step_is_repeated():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        execute, _, _ = executor(api)
        plan = Plan(occurrences=(Occurrence("Normal", "Started", "Training starts.", "Started"),))
        await execute.execute(KEY, JOB, plan, NOW)
        await execute.execute(KEY, JOB, plan, NOW)

        (event,) = fake.objects.values()
        assert event["involvedObject"]["uid"] == "job-uid"
        assert event["reason"] == "Started"

    against(scenario)
