"""Steps of a whole controller against a small API server."""

import asyncio
import signal
from typing import Any

import pytest
from fakeapi import KEY, SPEC, FakeServer, against, eventually, named
from ratchet_operator import apiserver
from ratchet_operator.apiserver import ApiServer
from ratchet_operator.cache import Cache
from ratchet_operator.controller import Controller
from ratchet_operator.kinds import (
    COMPONENT_LABEL,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    JOB_LABEL,
    JOB_UID_LABEL,
    LEASE,
    NETWORK_POLICY,
    POD,
    POLICY_DEPLOYMENT,
    ROLLOUT_POOL,
    SERVICE,
    TRAINING_JOB,
)
from ratchet_operator.leader import LEASE_NAME
from ratchet_operator.main import Operator
from ratchet_operator.observe import Observer, SecretSightings
from ratchet_operator.settings import Installation, Settings
from ratchet_operator.workqueue import Lane


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


def test_of_many_new_jobs_each_has_its_first_children_before_one_has_what_starts_pods():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        controller = Controller(Settings(nodes_visible=False), api)
        fake.lists = True
        await controller.resync(Lane.CHANGE)
        await controller.first_listing()
        jobs = ("one", "two", "three")
        for version, name in enumerate(jobs, 50):
            job = {**named(TRAINING_JOB, name), "spec": SPEC}
            job["metadata"] |= {"uid": f"{name}-uid", "resourceVersion": str(version), "generation": 1}
            controller.feed.seen(TRAINING_JOB, job)
        worker = asyncio.create_task(controller.work())
        deployments = [
            DEPLOYMENT.path("team", f"{name}-{what}") for name in jobs for what in ("redis", "trainer")
        ]
        await eventually(lambda: all(path in fake.objects for path in deployments))
        worker.cancel()

        written = [path for method, path in fake.log if method != "GET"]
        first_start = min(written.index(path) for path in deployments)
        for name in jobs[:-1]:  # nobody waits behind the last
            assert written.index(CONFIG_MAP.path("team", f"{name}-config")) < first_start
        assert [path for path in written if path.endswith("/events")] == [EVENT.path("team")] * len(jobs)

    against(scenario)


def ready_pod(job: str, component: str) -> dict[str, Any]:
    pod = named(POD, f"{job}-{component}-1")
    labels = {JOB_LABEL: job, COMPONENT_LABEL: component, JOB_UID_LABEL: "job-uid"}
    pod["metadata"] |= {"uid": "pod-uid", "resourceVersion": "60", "labels": labels}
    return {**pod, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}


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


def test_the_lease_does_not_wait_for_what_others_wait_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apiserver, "AT_ONCE", 1)

    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        at, lease = SERVICE.path("team", "slow"), LEASE.path("team", LEASE_NAME)
        fake.stalled[at] = asyncio.Event()
        slow = asyncio.create_task(api.get(SERVICE, "team", "slow"))
        await eventually(lambda: bool(fake.log))
        settings = Settings(pod_namespace="team", pod_name="one", port=0, nodes_visible=False)

        running = asyncio.create_task(Operator(settings, api).run())

        await eventually(lambda: lease in fake.objects)
        signal.raise_signal(signal.SIGTERM)
        assert await running == 0
        assert fake.objects[lease]["spec"]["holderIdentity"] == ""
        fake.stalled[at].set()
        await slow

    against(scenario)
