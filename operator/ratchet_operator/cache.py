"""What the watches told: objects by UID, found by name, by job, by pool.

An object is never replaced by an older version of itself, so that the answer to our own write, put here at
once, is not undone by a watch that lags. What is gone comes back only by a version newer than its going: a
watch by label tells of an object that lost its label as of a deleted one, and it may get the label back.
"""

import math
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import orjson

from ratchet_operator.kept import kept_by
from ratchet_operator.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    JOB_LABEL,
    NODE,
    POD,
    POLICY_DEPLOYMENT,
    POOL_LABEL,
    ROLLOUT_POOL,
    SERVING_LABEL,
    TRAINING_JOB,
    Json,
    Kind,
    items,
    label_value,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
    sub,
    uid_of,
    version_of,
)

WORKS_FOR = "spec.trainingJobRef.name"
SERVES_FROM = "spec.source.trainingJob.jobRef.name"
KEPT_FOR = "a checkpoint of a job, by its UID"
OWNER_LABELS = (JOB_LABEL, POOL_LABEL, SERVING_LABEL)
_TOMBSTONES = 10_000
_POD_STATUS = ("phase", "reason", "message", "podIP", "conditions", "containerStatuses")


def slim(kind: Kind, obj: Json) -> Json:
    """The object without what nobody here reads; most of a thousand jobs' memory is that."""
    metadata = {key: value for key, value in sub(obj, "metadata").items() if key != "managedFields"}
    if kind is POD:
        containers = [
            {"name": item.get("name"), "image": item.get("image")}
            for item in items(spec_of(obj), "containers")
        ]
        status = status_of(obj)
        return {
            "metadata": metadata,
            "spec": {"nodeName": spec_of(obj).get("nodeName"), "containers": containers},
            "status": {key: status[key] for key in _POD_STATUS if key in status},
        }
    if kind is NODE:
        allocatable: Json = sub(obj, "status", "allocatable")
        devices = {resource: amount for resource, amount in allocatable.items() if "/" in resource}
        kept = {key: metadata.get(key) for key in ("name", "uid", "resourceVersion")}
        return {"metadata": kept, "status": {"allocatable": devices}}
    if kind in (TRAINING_JOB, ROLLOUT_POOL, POLICY_DEPLOYMENT):
        return {**obj, "metadata": metadata}
    if kind is AUTOSCALER:
        wanted = {"desiredReplicas": status_of(obj).get("desiredReplicas")}
        return {**obj, "metadata": metadata, "status": wanted}
    return {key: value for key, value in obj.items() if key != "status"} | {"metadata": metadata}


@dataclass(frozen=True, slots=True)
class Packed:
    """A slim object as text, a seventh of the memory of its parts; and for its reader a copy of his own."""

    version: int
    namespace: str
    name: str
    text: bytes
    """Without its resourceVersion: equal texts say the same."""

    @classmethod
    def of(cls, kind: Kind, obj: Json) -> "Packed":
        """From an object as the API server gives it."""
        kept = slim(kind, obj)
        metadata = {key: value for key, value in kept["metadata"].items() if key != "resourceVersion"}
        # A copy: orjson's own keeps the room in which it was written, three times the text.
        text = bytes(memoryview(orjson.dumps({**kept, "metadata": metadata})))
        return cls(version_of(obj), sys.intern(namespace_of(obj)), name_of(obj), text)

    def unpack(self) -> Json:
        """The object."""
        obj = orjson.loads(self.text)
        obj["metadata"]["resourceVersion"] = str(self.version)
        return obj


class Store:
    """All objects of one kind.

    Attributes:
        changes: how much news there was, so that a reader knows whether he must look again.

    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.changes = 0
        self._by_uid: dict[str, Packed] = {}
        self._by_name: dict[tuple[str, str], str] = {}
        self._by_label: dict[tuple[str, str, str], dict[str, None]] = {}
        self._gone: OrderedDict[str, float] = OrderedDict()
        """The version at which each was told to be gone."""

    def __len__(self) -> int:
        return len(self._by_uid)

    def __iter__(self) -> Iterator[Json]:
        return (packed.unpack() for packed in list(self._by_uid.values()))

    def names(self) -> list[tuple[str, str]]:
        """Namespace and name of each object, without unpacking it."""
        return [(packed.namespace, packed.name) for packed in self._by_uid.values()]

    def put(self, obj: Json) -> tuple[bool, Json | None]:
        """Take in a version of an object.

        Returns:
            whether it says anything new that is read here, and then the version that was known before.

        """
        uid = uid_of(obj)
        before = self._by_uid.get(uid)
        known_until = before.version if before is not None else self._gone.get(uid, -1)
        if version_of(obj) <= known_until:
            return False, None
        self._gone.pop(uid, None)
        packed = Packed.of(self.kind, obj)
        self._by_uid[uid] = packed
        if before is not None and before.text == packed.text:
            return False, None
        self.changes += 1
        known = before.unpack() if before is not None else None
        if known is not None:
            self._unindex(known)
        self._by_name[packed.namespace, packed.name] = uid
        for at in self._labels(obj):
            self._by_label.setdefault(at, {})[uid] = None
        return True, known

    def remove(self, uid: str, version: float = math.inf) -> Json | None:
        """Forget an object; returns what was known of it.

        Args:
            uid: of the object.
            version: of its end, or of the loss of its label: API servers give both to the event, not the
                version before. It is higher than any that the object had until then, so what is known of a
                later one lives on. Infinite where it is deleted for certain.

        """
        packed = self._by_uid.get(uid)
        if packed is not None and packed.version > version:
            return None
        self._gone[uid] = max(version, self._gone.pop(uid, -1))
        if len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)
        if packed is None:
            return None
        del self._by_uid[uid]
        self.changes += 1
        before = packed.unpack()
        self._unindex(before)
        return before

    def missing_from(self, there: set[str], namespaces: tuple[str, ...], version: int) -> list[Json]:
        """What is known here and not in a list, by UIDs and resourceVersion: deleted while nobody watched."""
        return [
            packed.unpack()
            for uid, packed in self._by_uid.items()
            if uid not in there
            and packed.version <= version
            and (not namespaces or packed.namespace in namespaces)
        ]

    def get(self, namespace: str, name: str) -> Json | None:
        """The object with this name."""
        uid = self._by_name.get((namespace, name))
        return self._by_uid[uid].unpack() if uid is not None else None

    def name_behind(self, namespace: str, label: str) -> str:
        """The name behind a label value; it differs only where the name was too long for a label."""
        if (namespace, label) in self._by_name:
            return label
        names = (packed.name for packed in self._by_uid.values() if packed.namespace == namespace)
        return next((name for name in names if label_value(name) == label), label)

    def labelled(self, namespace: str, label: str, value: str) -> list[Json]:
        """The objects with this value of one of OWNER_LABELS, WORKS_FOR, SERVES_FROM or KEPT_FOR, by name."""
        uids = self._by_label.get((namespace, label, value), {})
        found = sorted((self._by_uid[uid] for uid in uids), key=lambda packed: packed.name)
        return [packed.unpack() for packed in found]

    def _labels(self, obj: Json) -> list[tuple[str, str, str]]:
        labels, namespace = labels_of(obj), namespace_of(obj)
        found = [(namespace, label, labels[label]) for label in OWNER_LABELS if label in labels]
        if self.kind is ROLLOUT_POOL:
            found.append((namespace, WORKS_FOR, sub(obj, "spec", "trainingJobRef").get("name", "")))
        elif self.kind is POLICY_DEPLOYMENT:
            job = sub(obj, "spec", "source", "trainingJob", "jobRef").get("name", "")
            found.append((namespace, SERVES_FROM, job))
        elif self.kind in (CONFIG_MAP, DEPLOYMENT):
            found += [(namespace, KEPT_FOR, uid) for uid in {one.uid for one in kept_by(obj)}]
        return found

    def _unindex(self, obj: Json) -> None:
        uid, at = uid_of(obj), (namespace_of(obj), name_of(obj))
        if self._by_name.get(at) == uid:
            del self._by_name[at]
        for label in self._labels(obj):
            uids = self._by_label.get(label)
            if uids is not None:
                uids.pop(uid, None)
                if not uids:
                    del self._by_label[label]


class Cache:
    """The stores of all watched kinds.

    Attributes:
        devices: of each extended resource, the largest number that any one node has.

    """

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.devices: Mapping[str, int] = {}
        self.stores = {kind.kind: Store(kind) for kind in kinds}

    def __getitem__(self, kind: Kind) -> Store:
        return self.stores[kind.kind]

    def __contains__(self, kind: Kind) -> bool:
        return kind.kind in self.stores

    def kept(self, namespace: str, job: str) -> tuple[str, ...]:
        """Names of the checkpoints of the job with a UID that servers may be started from, sorted."""
        speaking = (
            obj for kind in (CONFIG_MAP, DEPLOYMENT) for obj in self[kind].labelled(namespace, KEPT_FOR, job)
        )
        return tuple(sorted({one.checkpoint for obj in speaking for one in kept_by(obj) if one.uid == job}))
