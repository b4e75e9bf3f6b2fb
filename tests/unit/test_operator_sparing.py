"""An object that can't be kept is passed over, and all others are told."""

from typing import Any

from fakeapi import FakeServer, against, named
from ratchet_operator.apiserver import ApiServer
from ratchet_operator.cache import Cache
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import POLICY_DEPLOYMENT, ROLLOUT_POOL, TRAINING_JOB
from ratchet_operator.metrics import REGISTRY
from ratchet_operator.watch import Relists
from ratchet_operator.workqueue import WorkQueue


def job(name: str, version: int, deep: int = 0) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    for _ in range(deep):
        kwargs = {"a": kwargs}
    one = named(TRAINING_JOB, name)
    one["metadata"] |= {"uid": name, "resourceVersion": str(version)}
    return {**one, "spec": {"environment": {"kwargs": kwargs}}}


def spared() -> float:
    return REGISTRY.get_sample_value("ratchet_errors_total", {"kind": "feed RLTrainingJob bug"}) or 0


def test_a_list_goes_on_behind_an_object_that_is_too_deep():
    async def scenario(fake: FakeServer, api: ApiServer) -> None:
        items = [job("a", 1), job("deep", 2, deep=300), job("z", 3)]
        fake.objects[TRAINING_JOB.path()] = {"items": items, "metadata": {"resourceVersion": "9"}}
        cache, before = Cache([TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT]), spared()
        lists = Relists(api, Feed(cache, WorkQueue(lambda: 0.0)), TRAINING_JOB, None, None)

        assert await lists.list() == 9

        assert {name for _, name in cache[TRAINING_JOB].names()} == {"a", "z"}
        assert lists.listed.is_set()
        assert spared() == before + 1

    against(scenario)
