"""From a change of an object to the keys that need a step."""

from ratchet_operator.cache import SERVES_FROM, WORKS_FOR, Cache
from ratchet_operator.kept import kept_by
from ratchet_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB_LABEL,
    NODE,
    POLICY_DEPLOYMENT,
    POOL_LABEL,
    ROLLOUT_POOL,
    SERVING_LABEL,
    TRAINING_JOB,
    Json,
    Key,
    Kind,
    controller_of,
    is_deleting,
    items,
    labels_of,
    meta,
    name_of,
    namespace_of,
    status_of,
    sub,
    uid_of,
    version_of,
)
from ratchet_operator.observe import most_devices_on_a_node
from ratchet_operator.workqueue import Lane, WorkQueue

CHILDREN_SECONDS = 0.1  # from a change of a child to the step that it asks for
APART_SECONDS = 1.0  # between two such steps: while pods start, one change follows the other
OURS = (TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT)
OWNERS = frozenset(kind.kind for kind in OURS)


def key_of(obj: Json, kind: Kind) -> Key:
    """The key of an object."""
    return Key(kind.kind, namespace_of(obj), name_of(obj))


class Feed:
    """Puts what changed into the caches, and who must look at it into the queue."""

    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue

    def seen(self, kind: Kind, obj: Json, lane: Lane = Lane.CHANGE) -> bool:
        """An object as it is now; returns whether that is news."""
        news, before = self._cache[kind].put(obj)
        if news:
            self._tell(kind, obj, before, lane)
        return news

    def wrote(self, kind: Kind, obj: Json) -> None:
        """The answer to a write of ours, which the watch will repeat and is no news then. It also carries
        what others wrote just before us.
        """
        news, before = self._cache[kind].put(obj)
        if not news:
            return
        namespace, owner = namespace_of(obj), controller_of(obj)
        self._kept(kind, obj, before)
        if kind in OURS and (before is None or _was_edited(before, obj)):
            self._queue.add(key_of(obj, kind), Lane.NEW if before is None else Lane.EDIT)
            if kind is TRAINING_JOB:
                self.pools_of(namespace, name_of(obj), Lane.CHANGE)
        if kind is TRAINING_JOB and (before is None or _checkpoints(before) != _checkpoints(obj)):
            self.servers_of(namespace, name_of(obj))
        if owner is None or before is None:
            return
        if kind is CONFIG_MAP:  # the ledger says whether the job has ended
            self.pools_of(namespace, owner["name"], Lane.CHANGE)
        elif kind is ROLLOUT_POOL and items(status_of(before), "conditions") != items(
            status_of(obj), "conditions"
        ):  # the job repeats them
            self._soon(Key(owner["kind"], namespace, owner["name"]), Lane.CHANGE)

    def removed(self, kind: Kind, uid: str) -> None:
        """We deleted it, and it is gone."""
        self._cache[kind].remove(uid)

    def gone(self, kind: Kind, obj: Json) -> bool:
        """An object is no more, or lost the label that it is watched by, at the version that it has here;
        returns whether that is news.
        """
        return self._gone(kind, uid_of(obj), version_of(obj))

    def _gone(self, kind: Kind, uid: str, version: int) -> bool:
        before = self._cache[kind].remove(uid, version)
        if before is not None:
            self._tell(kind, before, None, Lane.CHANGE)
        return before is not None

    def relisted(self, kind: Kind, there: set[str], version: int, namespaces: tuple[str, ...]) -> int:
        """A whole list, by UIDs: forgets what it no longer has; returns how much that was."""
        missing = self._cache[kind].missing_from(there, namespaces, version)
        return sum(self._gone(kind, uid_of(obj), version) for obj in missing)

    def everything(self, lane: Lane) -> None:
        """Every job, every pool and every PolicyDeployment needs a look."""
        for kind in OURS:
            for namespace, name in self._cache[kind].names():
                self._queue.add(Key(kind.kind, namespace, name), lane)

    def trainer_said(self, namespace: str, name: str) -> None:
        """A trainer said something new."""
        self._queue.add(Key(TRAINING_JOB.kind, namespace, name), Lane.CHANGE)
        self.pools_of(namespace, name, Lane.CHANGE)

    def pools_of(self, namespace: str, job: str, lane: Lane) -> None:
        """Every pool that works for a job."""
        for pool in self._cache[ROLLOUT_POOL].labelled(namespace, WORKS_FOR, job):
            self._queue.add(key_of(pool, ROLLOUT_POOL), lane)

    def servers_of(self, namespace: str, job: str) -> None:
        """Every PolicyDeployment that serves from a job."""
        for serving in self._cache[POLICY_DEPLOYMENT].labelled(namespace, SERVES_FROM, job):
            self._queue.add(key_of(serving, POLICY_DEPLOYMENT), Lane.CHANGE)

    def servers_said(self, namespace: str, name: str) -> None:
        """The servers of a PolicyDeployment said something new."""
        self._queue.add(Key(POLICY_DEPLOYMENT.kind, namespace, name), Lane.CHANGE)

    def _tell(self, kind: Kind, obj: Json, before: Json | None, lane: Lane) -> None:
        if kind is NODE:
            self._nodes_changed()
            return
        namespace = namespace_of(obj)
        self._kept(kind, obj, before)
        if kind in OURS:
            edited = before is not None and _was_edited(before, obj)
            better = Lane.EDIT if edited else Lane.NEW if before is None else lane
            self._queue.add(key_of(obj, kind), min(lane, better))
            if kind is TRAINING_JOB:
                if before is None or edited:
                    self.pools_of(namespace, name_of(obj), lane)
                if before is None or edited or _checkpoints(before) != _checkpoints(obj):
                    self.servers_of(namespace, name_of(obj))
        owner = controller_of(obj)
        if owner is not None and owner.get("kind") in OWNERS:
            self._soon(Key(owner["kind"], namespace, owner["name"]), lane)
            if kind is CONFIG_MAP:
                self.pools_of(namespace, owner["name"], lane)
            return
        for label, owner_kind in (
            (JOB_LABEL, TRAINING_JOB),
            (POOL_LABEL, ROLLOUT_POOL),
            (SERVING_LABEL, POLICY_DEPLOYMENT),
        ):
            value = labels_of(obj).get(label)
            if value is not None:
                key = Key(owner_kind.kind, namespace, self._cache[owner_kind].name_behind(namespace, value))
                if before is not None and is_deleting(obj) and not is_deleting(before):
                    # Why it goes can be read for as long as it is there, which may be less than a second.
                    self._queue.add(key, lane)
                else:
                    self._soon(key, lane)

    def _kept(self, kind: Kind, obj: Json, before: Json | None) -> None:
        """Servers may be started from other checkpoints than before: tell the jobs that made them."""
        if kind in (CONFIG_MAP, DEPLOYMENT):
            for job in {one.job for one in kept_by(obj) ^ kept_by(before)}:
                self._queue.add(Key(TRAINING_JOB.kind, namespace_of(obj), job), Lane.CHANGE)

    def _soon(self, key: Key, lane: Lane) -> None:
        """Changes of children come in flocks, and many repeat what we wrote: one step for all of them."""
        self._queue.add_after(key, CHILDREN_SECONDS, lane, apart=APART_SECONDS)

    def _nodes_changed(self) -> None:
        devices = most_devices_on_a_node(list(self._cache[NODE]))
        if devices == self._cache.devices:
            return
        self._cache.devices = devices
        for job in self._cache[TRAINING_JOB]:
            if sub(job, "spec", "trainer", "gpu"):
                self._queue.add(key_of(job, TRAINING_JOB), Lane.CHANGE)


def _checkpoints(job: Json) -> Json:
    return sub(job, "status", "checkpoints")


def _was_edited(before: Json, after: Json) -> bool:
    fields = ("generation", "deletionTimestamp", "labels", "ownerReferences")
    return uid_of(before) != uid_of(after) or any(meta(before).get(f) != meta(after).get(f) for f in fields)
