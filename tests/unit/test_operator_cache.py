"""Caches and feed: nothing older replaces newer, nothing deleted lingers, and the right keys are told."""

import asyncio
import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ratchet_operator.cache import Cache, Packed, Store
from ratchet_operator.feed import Feed
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB_LABEL,
    NODE,
    POD,
    POLICY_DEPLOYMENT,
    POOL_LABEL,
    ROLLOUT_POOL,
    TRAINING_JOB,
    Json,
    label_value,
)
from ratchet_operator.workqueue import Lane, WorkQueue


def obj(name: str, uid: str, version: int, owner: tuple[str, str] | None = None, **labels: str) -> dict:
    owners = [{"kind": owner[0], "name": owner[1], "uid": "o", "controller": True}] if owner else []
    return {
        "metadata": {
            "name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version),
            "labels": labels, "ownerReferences": owners, "managedFields": [{"much": "text"}],
        }
    }  # fmt: skip


def test_an_older_version_is_no_news():
    store = Store(DEPLOYMENT)
    store.put(obj("a", "1", 10))

    assert store.put(obj("a", "1", 9, team="x"))[0] is False
    assert store.put(obj("a", "1", 10, team="x"))[0] is False
    assert store.put(obj("a", "1", 11, team="x"))[0] is True


def test_what_nobody_reads_is_no_news_and_the_newest_version_is_known_all_the_same():
    store = Store(DEPLOYMENT)
    store.put(obj("a", "1", 10))

    assert store.put({**obj("a", "1", 11), "status": {"readyReplicas": 1}})[0] is False
    assert store.put(obj("a", "1", 10, team="x"))[0] is False
    assert store.get("team", "a")["metadata"]["resourceVersion"] == "11"


def test_a_deleted_object_does_not_come_back_by_a_late_answer():
    store = Store(DEPLOYMENT)
    store.put(obj("a", "1", 10))
    store.remove("1")

    assert store.put(obj("a", "1", 12))[0] is False
    assert store.get("team", "a") is None


def test_an_object_that_gets_its_label_back_is_known_again_and_nothing_older_of_it():
    store = Store(CONFIG_MAP)
    store.put(obj("a", "1", 10))
    store.remove("1", 11)

    assert store.put(obj("a", "1", 11))[0] is False
    assert store.put(obj("a", "1", 12, label="back"))[0] is True
    assert store.get("team", "a")["metadata"]["labels"] == {"label": "back"}


def test_a_loss_that_is_told_again_brings_nothing_back_from_before_a_later_one():
    store = Store(CONFIG_MAP)
    store.remove("1", 13)
    store.remove("1", 11)

    assert store.put(obj("a", "1", 12))[0] is False


def test_a_late_word_of_the_lost_label_does_not_undo_what_we_repaired():
    store = Store(CONFIG_MAP)
    store.put(obj("a", "1", 10))
    store.put(obj("a", "1", 12, label="back"))

    assert store.remove("1", 11) is None
    assert store.get("team", "a") is not None


def test_what_a_later_list_lacked_comes_back_by_no_event_from_before_it():
    into, cache, _ = feed()
    into.seen(CONFIG_MAP, obj("a", "1", 10))
    into.relisted(CONFIG_MAP, set(), 50, ())

    assert not into.seen(CONFIG_MAP, obj("a", "1", 40))
    assert into.seen(CONFIG_MAP, obj("a", "1", 51, label="back"))
    assert cache[CONFIG_MAP].get("team", "a") is not None


@dataclass
class Labelled:
    """The objects of an API server, and what it tells of those that have the label, and when."""

    version: int = 0
    there: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Version, and whether it has the label, by UID."""
    events: list[tuple[str, str, int]] = field(default_factory=list)
    lists: list[dict[str, int]] = field(default_factory=lambda: [{}])
    """What a list found after so many events, and each later index is a later version."""
    answers: list[tuple[str, int]] = field(default_factory=list)
    """To our writes, each of which puts the label there, and not yet taken in."""

    def write(self, uid: str, labelled: bool | None) -> None:
        """As an API server does: None deletes, and whoever loses the label is told as deleted."""
        _, had = self.there.get(uid, (0, False))
        self.version += 1
        self.there.pop(uid, None)
        if labelled is not None:
            self.there[uid] = (self.version, labelled)
        if labelled:
            self.events.append(("MODIFIED" if had else "ADDED", uid, self.version))
        else:
            self.events.append(("DELETED" if had else "BOOKMARK", uid, self.version))
        self.lists.append({one: version for one, (version, found) in self.there.items() if found})


def child(uid: str, version: int) -> dict:
    return obj(uid, uid, version, said=str(version))


HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(
            ["edit", "strip", "repair", "delete", "we delete", "told", "told", "answered", "answered", "list"]
        ),
        st.integers(0, 20),
    ),
    min_size=15,
    max_size=50,
)


@settings(max_examples=200, deadline=None)
@given(HAPPENINGS)
def test_once_all_is_told_the_cache_has_what_has_the_label_whatever_came_late_or_twice(
    happenings: list[tuple[str, int]],
):
    api, (into, cache, _), told, births = Labelled(), feed(), 0, 0
    for what, choice in happenings:
        uids = sorted(api.there)
        uid = uids[choice % len(uids)] if uids else None
        if what == "told":
            tell(into, api, told, told + choice % 4)
            told = min(len(api.events), told + choice % 4)
        elif what == "answered" and api.answers:
            into.wrote(CONFIG_MAP, child(*api.answers.pop(choice % len(api.answers))))
        elif what == "list":
            # Some API servers are behind others; a watch goes on from where the list was.
            told = max(0, len(api.events) - choice % 4)
            # No answer takes longer than all of a later list: that it lacks an object is not kept in mind.
            for answer in [one for one in api.answers if one[1] <= told]:
                api.answers.remove(answer)
                into.wrote(CONFIG_MAP, child(*answer))
            found = api.lists[told]
            for one, version in found.items():
                into.seen(CONFIG_MAP, child(one, version))
            into.relisted(CONFIG_MAP, set(found), told, ())
        elif what == "repair" or uid is None:
            births += uid is None
            uid = uid or f"uid-{births}"
            api.write(uid, labelled=True)
            api.answers.append((uid, api.version))
        elif what == "edit":
            api.write(uid, labelled=api.there[uid][1])
        elif what == "strip":
            api.write(uid, labelled=False)
        elif what == "delete":
            api.write(uid, labelled=None)
        elif what == "we delete":
            api.write(uid, labelled=None)
            into.removed(CONFIG_MAP, uid)

    for answer in api.answers:
        into.wrote(CONFIG_MAP, child(*answer))
    tell(into, api, told, len(api.events))

    known = {one["metadata"]["uid"]: int(one["metadata"]["resourceVersion"]) for one in cache[CONFIG_MAP]}
    assert known == api.lists[-1]


def tell(into: Feed, api: Labelled, first: int, end: int) -> None:
    for kind, uid, version in api.events[first:end]:
        if kind == "DELETED":
            into.gone(CONFIG_MAP, child(uid, version))
        elif kind != "BOOKMARK":
            into.seen(CONFIG_MAP, child(uid, version))


def test_a_new_object_of_the_same_name_takes_the_name_and_keeps_it():
    store = Store(DEPLOYMENT)
    store.put(obj("a", "1", 10))
    store.put(obj("a", "2", 20))
    store.remove("1")

    found = store.get("team", "a")
    assert found is not None
    assert found["metadata"]["uid"] == "2"


def test_what_a_reader_changes_is_his_own_copy():
    store = Store(DEPLOYMENT)
    store.put({**obj("a", "1", 10), "spec": {"replicas": 1}})

    store.get("team", "a")["spec"]["replicas"] = 2

    assert store.get("team", "a")["spec"] == {"replicas": 1}


def test_labels_that_change_move_the_object():
    store = Store(POD)
    store.put(obj("a", "1", 1, **{JOB_LABEL: "x"}))
    store.put(obj("a", "1", 2, **{JOB_LABEL: "y"}))

    assert store.labelled("team", JOB_LABEL, "x") == []
    assert len(store.labelled("team", JOB_LABEL, "y")) == 1


def test_managed_fields_are_not_kept():
    store = Store(DEPLOYMENT)
    store.put(obj("a", "1", 1))

    found = store.get("team", "a")
    assert found is not None
    assert "managedFields" not in found["metadata"]


class Clock:
    """Moves on by a second whenever somebody looks, so that nothing is waited for."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def feed() -> tuple[Feed, Cache, WorkQueue]:
    cache = Cache([TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT, POD, CONFIG_MAP, NODE, DEPLOYMENT])
    queue = WorkQueue(Clock())
    return Feed(cache, queue), cache, queue


def told(queue: WorkQueue) -> list[str]:
    async def drain() -> list[str]:
        found: list[str] = []
        while queue.depth():
            key = await queue.get()
            queue.done(key)
            found.append(f"{key.kind}/{key.name}")
        return found

    return asyncio.run(drain())


def test_a_list_forgets_what_it_no_longer_has_and_only_that():
    into, cache, queue = feed()
    for name, version in (("stays", 1), ("goes", 2), ("newer-than-the-list", 99)):
        into.seen(DEPLOYMENT, obj(name, name, version, owner=("RLTrainingJob", name)))
    told(queue)

    missed = into.relisted(DEPLOYMENT, {"stays"}, 50, ())

    assert missed == 1
    assert cache[DEPLOYMENT].get("team", "goes") is None
    assert cache[DEPLOYMENT].get("team", "newer-than-the-list") is not None
    assert told(queue) == ["RLTrainingJob/goes"]


def test_a_list_of_one_namespace_says_nothing_of_another():
    into, cache, _ = feed()
    into.seen(DEPLOYMENT, obj("a", "1", 1))

    into.relisted(DEPLOYMENT, set(), 50, ("other",))

    assert cache[DEPLOYMENT].get("team", "a") is not None


def test_a_child_tells_its_owner_and_a_worker_pod_tells_job_and_pool():
    into, _, queue = feed()
    into.seen(DEPLOYMENT, obj("d", "1", 1, owner=("RLTrainingJob", "job")))
    assert told(queue) == ["RLTrainingJob/job"]

    into.seen(POD, obj("p", "2", 2, owner=("Job", "w"), **{JOB_LABEL: "job", POOL_LABEL: "pool"}))
    assert told(queue) == ["RLTrainingJob/job", "RolloutPool/pool"]


def test_a_pod_that_is_being_deleted_is_looked_at_at_once_while_it_says_why():
    into, _, queue = feed()
    into.seen(POD, obj("p", "1", 1, owner=("ReplicaSet", "t"), **{JOB_LABEL: "job"}))
    told(queue)

    going = obj("p", "1", 2, owner=("ReplicaSet", "t"), **{JOB_LABEL: "job"})
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    into.seen(POD, going)

    assert queue.waiting(Lane.CHANGE) == 1


def test_a_status_of_the_job_does_not_wake_its_pools_and_an_edit_does():
    into, _, queue = feed()
    pool = obj("pool", "p", 1)
    pool["spec"] = {"trainingJobRef": {"name": "job"}}
    into.seen(ROLLOUT_POOL, pool)
    job = obj("job", "j", 2)
    job["metadata"]["generation"] = 1
    into.seen(TRAINING_JOB, job)
    told(queue)

    status = obj("job", "j", 3)
    status["metadata"]["generation"] = 1
    status["status"] = {"attempt": 1}
    into.seen(TRAINING_JOB, status)
    assert told(queue) == ["RLTrainingJob/job"]

    edit = obj("job", "j", 4)
    edit["metadata"]["generation"] = 2
    into.seen(TRAINING_JOB, edit)
    assert told(queue) == ["RLTrainingJob/job", "RolloutPool/pool"]


def test_nodes_matter_only_when_their_devices_change():
    into, _, queue = feed()
    job = obj("job", "j", 1)
    job["spec"] = {"trainer": {"gpu": {"count": 1}}}
    into.seen(TRAINING_JOB, job)
    told(queue)
    node = obj("n", "n", 2)
    node["status"] = {"allocatable": {"cpu": "4", "nvidia.com/gpu": "1"}}
    into.seen(NODE, node)
    assert told(queue) == ["RLTrainingJob/job"]

    heartbeat = obj("n", "n", 3)
    heartbeat["status"] = node["status"]
    into.seen(NODE, heartbeat)
    assert told(queue) == []


def test_a_pool_that_we_wrote_is_looked_at_though_the_watch_repeats_it():
    into, _, queue = feed()
    pool = obj("pool", "p", 2, owner=("RLTrainingJob", "job"))
    pool["spec"] = {"trainingJobRef": {"name": "job"}, "replicas": 1}

    into.wrote(ROLLOUT_POOL, pool)
    into.seen(ROLLOUT_POOL, pool)
    assert told(queue) == ["RolloutPool/pool"]

    scaled = obj("pool", "p", 3, owner=("RLTrainingJob", "job"))
    scaled["metadata"]["generation"] = 2
    scaled["spec"] = {"trainingJobRef": {"name": "job"}, "replicas": 2}
    into.wrote(ROLLOUT_POOL, scaled)
    into.seen(ROLLOUT_POOL, scaled)
    assert told(queue) == ["RolloutPool/pool"]


def pool_of(job: str, version: int, generation: int = 1, **status: object) -> dict:
    pool = obj("pool", "p", version, owner=("RLTrainingJob", job))
    pool["metadata"]["generation"] = generation
    return {**pool, "spec": {"trainingJobRef": {"name": job}}, "status": status}


def test_an_edit_that_only_the_answer_to_our_own_write_tells_is_not_lost():
    into, _, queue = feed()
    into.seen(ROLLOUT_POOL, pool_of("job", 1))
    job = obj("job", "j", 2)
    job["metadata"]["generation"] = 1
    into.seen(TRAINING_JOB, job)
    told(queue)
    edit, answer = obj("job", "j", 3), obj("job", "j", 4)
    edit["metadata"]["generation"] = answer["metadata"]["generation"] = 2
    answer["status"] = {"attempt": 1}

    into.wrote(TRAINING_JOB, answer)
    for late in (edit, answer):
        into.seen(TRAINING_JOB, late)
    assert told(queue) == ["RLTrainingJob/job", "RolloutPool/pool"]

    into.wrote(ROLLOUT_POOL, pool_of("job", 6, generation=2, workers=1))
    assert told(queue) == ["RolloutPool/pool"]


def test_our_own_status_of_a_job_tells_nobody():
    into, _, queue = feed()
    into.seen(TRAINING_JOB, obj("job", "j", 2))
    told(queue)

    into.wrote(TRAINING_JOB, {**obj("job", "j", 3), "status": {"attempt": 1}})

    assert told(queue) == []


def test_what_we_say_of_a_pool_is_told_to_its_job_and_not_to_the_pool():
    into, _, queue = feed()
    into.seen(ROLLOUT_POOL, pool_of("job", 1))
    told(queue)

    into.wrote(ROLLOUT_POOL, pool_of("job", 2, conditions=[{"type": "Ready", "status": "True"}]))
    assert told(queue) == ["RLTrainingJob/job"]

    into.wrote(
        ROLLOUT_POOL, pool_of("job", 3, conditions=[{"type": "Ready", "status": "True"}], readyReplicas=1)
    )
    assert told(queue) == []


def test_a_name_too_long_for_a_label_is_found_by_it():
    into, _, queue = feed()
    long = "job" * 30
    into.seen(TRAINING_JOB, obj(long, "j", 1))
    told(queue)

    into.seen(POD, obj("p", "2", 2, owner=("Job", "w"), **{JOB_LABEL: label_value(long)}))

    assert told(queue) == [f"RLTrainingJob/{long}"]


def test_a_pod_of_a_job_that_is_gone_costs_no_look_into_the_others(monkeypatch: pytest.MonkeyPatch):
    into, _, queue = feed()
    for number in range(10):
        into.seen(TRAINING_JOB, obj(f"job-{number}", f"j{number}", number + 1))
    unpacked: list[str] = []
    unpack = Packed.unpack

    def counted(packed: Packed) -> Json:
        unpacked.append(packed.name)
        return unpack(packed)

    monkeypatch.setattr(Packed, "unpack", counted)

    into.seen(POD, obj("p", "p", 99, owner=("Job", "w"), **{JOB_LABEL: "gone"}))

    assert unpacked == []
    assert "RLTrainingJob/gone" in told(queue)


def test_the_pools_of_a_job_learn_what_we_wrote_into_its_ledger():
    into, _, queue = feed()
    pool = obj("pool", "p", 1)
    pool["spec"] = {"trainingJobRef": {"name": "job"}}
    into.seen(ROLLOUT_POOL, pool)
    into.wrote(CONFIG_MAP, obj("job-config", "c", 2, owner=("RLTrainingJob", "job")))
    told(queue)

    into.wrote(CONFIG_MAP, obj("job-config", "c", 3, owner=("RLTrainingJob", "job"), ended="yes"))

    assert told(queue) == ["RolloutPool/pool"]


def test_what_is_kept_takes_the_room_of_its_text():
    big = {"metadata": {"name": "x", "namespace": "team"}, "data": {"text": "x" * 1500}}
    tracemalloc.start()
    try:
        kept = [Packed.of(CONFIG_MAP, big) for _ in range(100)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken < 1.5 * sum(len(packed.text) for packed in kept)
