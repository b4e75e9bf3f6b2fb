"""What the operator hears of trainers, some of which are anybody's image."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from ratchet_operator import trainers
from ratchet_operator.cache import Cache
from ratchet_operator.kinds import POD, TRAINING_JOB
from ratchet_operator.metrics import REGISTRY
from ratchet_operator.trainers import LONGEST_ANSWER, TrainerWatch

from ratchet.api.v1alpha1 import TrainerStatus

STATUS = TrainerStatus(uid="job-uid", attempt=1, epoch=2, state="Training")


def told() -> Cache:
    """One job with one ready trainer on loopback."""
    cache = Cache([TRAINING_JOB, POD])
    job = {"name": "job", "namespace": "team", "uid": "job-uid", "resourceVersion": "1"}
    cache[TRAINING_JOB].put({"metadata": job})
    pod = {
        "name": "job-trainer-x", "namespace": "team", "uid": "pod-uid", "resourceVersion": "2",
        "labels": {
            "ratchet.dev/job": "job", "ratchet.dev/job-uid": "job-uid", "ratchet.dev/component": "trainer",
        },
        "ownerReferences": [{"kind": "ReplicaSet", "uid": "set-uid", "controller": True}],
    }  # fmt: skip
    ready = {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "trainer", "ready": True}],
    }
    cache[POD].put({"metadata": pod, "spec": {}, "status": ready})
    return cache


def heard(
    answer: Callable[[], web.StreamResponse],
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[[str, str], None] = lambda namespace, name: None,
) -> TrainerStatus | None:
    """What the watch holds of the trainer after it has asked it twice."""

    async def scenario() -> TrainerStatus | None:
        asked = asyncio.Event()
        count = 0

        async def handle(_: web.Request) -> web.StreamResponse:
            nonlocal count
            count += 1
            if count == 3:
                asked.set()
            return answer()

        app = web.Application()
        app.router.add_get("/status", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        monkeypatch.setattr(trainers, "PORT", runner.addresses[0][1])
        watch = TrainerWatch(told(), 0.0, changed)
        assert not watch.all_asked()
        task = asyncio.create_task(watch.run())
        try:
            async with asyncio.timeout(30):
                await asked.wait()
            assert watch.all_asked()
            return watch.answer("job-uid")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()

    return asyncio.run(scenario())


def test_a_trainers_status_is_heard(monkeypatch: pytest.MonkeyPatch):
    body = STATUS.model_dump_json(by_alias=True)
    assert heard(lambda: web.Response(text=body), monkeypatch) == STATUS


def test_a_status_may_be_as_long_as_is_promised(monkeypatch: pytest.MonkeyPatch):
    body = STATUS.model_dump_json(by_alias=True)
    padded = body + " " * (LONGEST_ANSWER - len(body))
    assert heard(lambda: web.Response(text=padded), monkeypatch) == STATUS
    assert heard(lambda: web.Response(text=padded + " "), monkeypatch) is None


def test_an_answer_without_end_is_left_unread(monkeypatch: pytest.MonkeyPatch):
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    assert heard(lambda: web.Response(body=endless()), monkeypatch) is None


@pytest.mark.parametrize("body", ["", "{", '{"uid": "another"}', "[]"])
def test_what_is_no_status_of_this_job_is_none(body: str, monkeypatch: pytest.MonkeyPatch):
    assert heard(lambda: web.Response(text=body), monkeypatch) is None


def test_what_breaks_on_one_trainer_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    def breaks(namespace: str, name: str) -> None:
        raise OverflowError(name)

    before = REGISTRY.get_sample_value("ratchet_errors_total", {"kind": "ask RLTrainingJob bug"}) or 0
    body = STATUS.model_dump_json(by_alias=True)
    assert heard(lambda: web.Response(text=body), monkeypatch, breaks) == STATUS
    assert REGISTRY.get_sample_value("ratchet_errors_total", {"kind": "ask RLTrainingJob bug"}) == before + 1
