"""The client, the executor and the Lease against a small API server over HTTP, which can also misbehave."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from ratchet_operator.adminkey import AdminKey
from ratchet_operator.apiserver import PARTIAL, ApiError, ApiServer, Bucket
from ratchet_operator.cache import Cache
from ratchet_operator.controller import Controller
from ratchet_operator.execute import Executor
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    COMPONENT_LABEL,
    CONFIG_MAP,
    DEPLOYMENT,
    JOB_LABEL,
    JOB_UID_LABEL,
    LEASE,
    NETWORK_POLICY,
    POD,
    POLICY_DEPLOYMENT,
    ROLLOUT_POOL,
    SECRET,
    SERVICE,
    TRAINING_JOB,
    Key,
    uid_of,
)
from ratchet_operator.leader import LEASE_NAME, Lock
from ratchet_operator.main import Operator
from ratchet_operator.observe import Observer, SecretSightings
from ratchet_operator.plan import ABSENT, Apply, CreateRedisSecret, Delete, Occurrence, Plan
from ratchet_operator.settings import Installation, Settings
from ratchet_operator.workqueue import Lane, WorkQueue

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("RLTrainingJob", "team", "job")
JOB = {"metadata": {"name": "job", "namespace": "team", "uid": "job-uid", "resourceVersion": "1"}}

SPEC = {
    "environment": {"id": "CartPole-v1"},
    "algorithm": {"type": "PPO", "ppo": {}},
    "checkpoint": {"s3": {"bucket": "bucket"}},
    "stop": {"maxSteps": 1000},
}


class FakeServer:
    """Objects by path, a log of requests, and failures to order."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[str, str]] = []
        self.accepted: list[str] = []
        self.fail: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self.going: set[str] = set()
        self.lists = False
        self._numbers = itertools.count(1)

    def answer(self, status: int, message: str, reason: str = "") -> web.Response:
        headers = {"Retry-After": "30"} if status == 429 else None
        said = {"kind": "Status", "message": message, "reason": reason}
        return web.json_response(said, status=status, headers=headers)

    async def handle(self, request: web.Request) -> web.Response:
        """One request to a connection: kopf ends every task that is younger than itself, the server's too."""
        answer = await self._answer_to(request)
        answer.force_close()
        return answer

    async def _answer_to(self, request: web.Request) -> web.Response:
        path = request.path
        self.log.append((request.method, path))
        self.accepted.append(request.headers.get("Accept", ""))
        if self.fail.get((request.method, path)):
            status, message = self.fail[request.method, path].pop(0)
            return self.answer(status, message)
        body = json.loads(await request.text()) if request.can_read_body else {}
        if request.method == "GET" and "fieldSelector" in request.query:
            return self._named(path, request.query["fieldSelector"])
        if request.method == "GET":
            return self._get(path)
        if request.method == "DELETE":
            return self._delete(path, body)
        if "team" in self.going:
            causes = {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}
            said = "unable to create new content in namespace team because it is being terminated"
            return web.json_response({"reason": "Forbidden", "message": said, "details": causes}, status=403)
        return self._write(request, path, body)

    def _get(self, path: str) -> web.Response:
        if self.lists and path not in self.objects:
            return web.json_response({"items": [], "metadata": {"resourceVersion": "9"}})
        if path not in self.objects:
            return self.answer(404, "not found", "NotFound")
        return web.json_response(self.objects[path])

    def _named(self, collection: str, selector: str) -> web.Response:
        live = self.objects.get(f"{collection}/{selector.removeprefix('metadata.name=')}")
        items = [] if live is None else [live]
        return web.json_response({"items": items, "metadata": {"resourceVersion": "9"}})

    def _delete(self, path: str, body: dict[str, Any]) -> web.Response:
        live = self.objects.get(path)
        if live is None:
            return self.answer(404, "not found", "NotFound")
        if body["preconditions"]["uid"] != uid_of(live):
            said = f"Precondition failed: UID in precondition: x, UID in object meta: {uid_of(live)}"
            return self.answer(409, said, "Conflict")
        del self.objects[path]
        return web.json_response({"kind": "Status", "status": "Success"})

    def _write(self, request: web.Request, path: str, body: dict[str, Any]) -> web.Response:
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return self.answer(409, "already exists", "AlreadyExists")
        live = self.objects.get(path.removesuffix("/status"))
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted and live and wanted != live["metadata"]["resourceVersion"]:
            return self.answer(409, "the object has been modified", "Conflict")
        obj = {**(live or {}), **body}
        metadata = {**(live or {}).get("metadata", {}), **body.get("metadata", {})}
        metadata.setdefault("uid", f"uid-{next(self._numbers)}")
        metadata["resourceVersion"] = str(next(self._numbers))
        self.objects[path.removesuffix("/status")] = {**obj, "metadata": metadata}
        return web.json_response(self.objects[path.removesuffix("/status")])


def against(scenario: Callable[[FakeServer, ApiServer], Awaitable[None]]) -> None:
    async def run() -> None:
        fake = FakeServer()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        loop = asyncio.get_running_loop()
        try:
            async with ApiServer(configuration, Bucket(1000, 1000, loop.time)) as api:
                await scenario(fake, api)
        finally:
            await runner.cleanup()

    asyncio.run(run())


def executor(api: ApiServer) -> tuple[Executor, Cache, SecretSightings]:
    cache = Cache([TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT, DEPLOYMENT, SERVICE, CONFIG_MAP])
    sightings = SecretSightings(api)
    feed = Feed(cache, WorkQueue(time.monotonic))
    return Executor(api, feed, sightings, "operator-1", AdminKey("")), cache, sightings


def named(kind: Any, name: str) -> dict[str, Any]:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": name, "namespace": "team"},
    }


def owned(kind: Any, name: str) -> dict[str, Any]:
    obj = named(kind, name)
    obj["metadata"]["ownerReferences"] = [{"uid": "job-uid", "controller": True}]
    return obj


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


async def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_step_waits_for_as_long_as_the_api_server_asks(caplog: pytest.LogCaptureFixture):
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        fake.fail["GET", CONFIG_MAP.path("team", "job-config")] = [(429, "too many requests")]
        controller = Controller(Settings(nodes_visible=False), api)
        job = {**named(TRAINING_JOB, "job"), "spec": SPEC}
        job["metadata"] |= {"uid": "job-uid", "resourceVersion": "5", "generation": 1}
        controller.feed.seen(TRAINING_JOB, job)
        worker = asyncio.create_task(controller.work())
        failed = lambda: [record for record in caplog.records if record.message == "step failed"]  # noqa: E731
        await eventually(lambda: bool(failed()))
        worker.cancel()

        assert failed()[0].__dict__["retry_in"] == 30

    against(scenario)


def test_in_a_namespace_that_is_being_deleted_one_step_is_tried_and_no_more():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        fake.going.add("team")
        controller = Controller(Settings(nodes_visible=False), api)
        job = {**named(TRAINING_JOB, "job"), "spec": SPEC}
        job["metadata"] |= {"uid": "job-uid", "resourceVersion": "5", "generation": 1}
        controller.feed.seen(TRAINING_JOB, job)
        worker = asyncio.create_task(controller.work())
        writes = lambda: [entry for entry in fake.log if entry[0] != "GET"]  # noqa: E731
        await eventually(lambda: bool(writes()) and not controller.queue.depth())
        tried = len(writes())

        for lane in (Lane.CHANGE, Lane.EDIT):
            controller.queue.add(KEY, lane)
            await eventually(lambda: not controller.queue.depth())
        assert len(writes()) == tried

        # Its successor in a namespace of the same name has another UID.
        fake.going.clear()
        controller.feed.gone(TRAINING_JOB, job)
        again = {**job, "metadata": {**job["metadata"], "uid": "another", "resourceVersion": "6"}}
        controller.feed.seen(TRAINING_JOB, again)
        await eventually(lambda: DEPLOYMENT.path("team", "job-trainer") in fake.objects)
        worker.cancel()

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


def test_a_new_job_is_made_without_asking_and_says_so_once_though_its_pods_come_one_by_one():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        controller = Controller(Settings(nodes_visible=False), api)
        fake.lists = True
        await controller.resync(Lane.CHANGE)
        await controller.first_listing()
        fake.log.clear()
        job = {**named(TRAINING_JOB, "job"), "spec": SPEC}
        job["metadata"] |= {"uid": "job-uid", "resourceVersion": "50", "generation": 1}
        controller.feed.seen(TRAINING_JOB, job)
        worker = asyncio.create_task(controller.work())
        await eventually(lambda: DEPLOYMENT.path("team", "job-trainer") in fake.objects)
        status = ("PATCH", TRAINING_JOB.path("team", "job", "status"))
        await eventually(lambda: fake.log.count(status) == 1)
        assert [path for method, path in fake.log if method == "GET"] == []

        controller.feed.seen(POD, ready_pod("job", "redis"))
        controller.queue.add(KEY, Lane.CHANGE)
        await eventually(lambda: not controller.queue.depth())
        assert fake.log.count(status) == 1
        worker.cancel()

    against(scenario)


def ready_pod(job: str, component: str) -> dict[str, Any]:
    pod = named(POD, f"{job}-{component}-1")
    labels = {JOB_LABEL: job, COMPONENT_LABEL: component, JOB_UID_LABEL: "job-uid"}
    pod["metadata"] |= {"uid": "pod-uid", "resourceVersion": "60", "labels": labels}
    return {**pod, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}


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


def test_no_answer_is_an_api_error_too():
    async def scenario() -> None:
        configuration = Configuration()
        configuration.host = "http://127.0.0.1:1"
        async with ApiServer(configuration, Bucket(1, 1, asyncio.get_running_loop().time)) as api:
            with pytest.raises(ApiError) as raised:
                await api.get(SERVICE, "team", "s")
            assert raised.value.status == 0

    asyncio.run(scenario())


def test_what_was_seen_of_secrets_is_forgotten_once_nobody_would_trust_it():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        for trusted, left in ((240.0, 1), (-1.0, 0)):
            sightings = SecretSightings(api, trusted)
            sightings.put("team", "s", owned(SECRET, "s"))

            sightings.prune()

            assert len(sightings) == left

    against(scenario)


@pytest.mark.parametrize(("status", "asks"), [({}, False), ({"attempt": 1}, True)])
def test_only_a_job_without_a_status_is_taken_for_newborn(status: dict[str, Any], asks: bool):
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        cache = Cache(
            [
                TRAINING_JOB,
                ROLLOUT_POOL,
                POLICY_DEPLOYMENT,
                DEPLOYMENT,
                SERVICE,
                CONFIG_MAP,
                POD,
                NETWORK_POLICY,
            ]
        )
        observer = Observer(api, cache, SecretSightings(api), Installation(), lambda _: None, lambda: True)
        observer.oldest_news = 100
        job = {**named(TRAINING_JOB, "job"), "spec": SPEC, "status": status}
        job["metadata"] |= {"uid": "job-uid", "resourceVersion": "105", "generation": 2}

        await observer.job(job, KEY)

        assert (("GET", CONFIG_MAP.path("team", "job-config")) in fake.log) == asks

    against(scenario)


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


def test_the_bucket_lets_a_burst_through_and_then_keeps_the_rate():
    now = [0.0]
    bucket = Bucket(10, 3, lambda: now[0])

    assert [bucket.reserve() for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    now[0] = 10
    assert bucket.reserve() == 0


def test_an_operator_whose_leading_breaks_says_so_by_its_exit_code_and_gives_the_lease_back():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        fake.lists = True
        crds = [{"name": kind.plural} for kind in (TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT)]
        fake.objects["/apis/ratchet.dev/v1alpha1"] = {"resources": crds}
        fake.objects["/apis"] = {"groups": "no list of groups"}  # kopf can't go on with that
        lease = LEASE.path("team", LEASE_NAME)
        fake.fail["GET", lease] = [(404, "not found")]
        settings = Settings(pod_namespace="team", pod_name="one", port=0, nodes_visible=False)

        assert await Operator(settings, api).run() != 0

        assert fake.objects[lease]["spec"]["holderIdentity"] == ""

    against(scenario)
