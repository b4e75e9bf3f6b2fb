"""From the children that are wanted and those that live: what to apply, to delete, and what is in the way."""

from collections.abc import Iterable
from dataclasses import dataclass

from ratchet_operator.drift import WANTED_HASH, first_difference
from ratchet_operator.kinds import (
    KIND_BY_NAME,
    Json,
    Kind,
    annotations_of,
    controller_of,
    is_deleting,
    is_owned_by,
    meta,
    name_of,
    namespace_of,
    uid_of,
)
from ratchet_operator.plan import Apply, Delete


@dataclass(frozen=True, slots=True)
class ChildStep:
    """What one child needs: at most one of the three."""

    apply: Apply | None = None
    delete: Delete | None = None
    taken: str | None = None


def step(wanted: Json, live: Json | None, owner_uid: str, owner_kind: str) -> ChildStep:
    """Compare one child; a same-named object of a dead owner goes first, and a stranger's is left alone."""
    kind = KIND_BY_NAME[wanted["kind"]]
    if live is None:
        return ChildStep(apply=Apply(kind, wanted, "absent"))
    if not is_owned_by(live, owner_uid):
        owner = controller_of(live)
        if owner is not None and owner.get("kind") == owner_kind:
            if is_deleting(live):
                return ChildStep()
            return ChildStep(delete=removal(kind, live, "it belongs to an earlier owner of the same name"))
        return ChildStep(taken=f"{kind.kind} {name_of(live)}")
    if is_deleting(live):
        return ChildStep()
    why = difference(wanted, live)
    return ChildStep(apply=Apply(kind, wanted, why)) if why is not None else ChildStep()


def difference(wanted: Json, live: Json) -> str | None:
    """Why the live child has to be applied again; None where it need not."""
    if annotations_of(wanted).get(WANTED_HASH) != annotations_of(live).get(WANTED_HASH):
        return first_difference(_unstamped(wanted), live) or "something is no longer wanted"
    return first_difference(wanted, live)


def _unstamped(wanted: Json) -> Json:
    """Without the hash, which differs whenever anything does and says nothing."""
    annotations = {key: value for key, value in annotations_of(wanted).items() if key != WANTED_HASH}
    return {**wanted, "metadata": {**meta(wanted), "annotations": annotations}}


def removal(kind: Kind, live: Json, why: str) -> Delete:
    """Deletion of a live object."""
    return Delete(kind, namespace_of(live), name_of(live), uid_of(live), why)


def removals(kind: Kind, live: Iterable[Json | None], owner_uid: str, why: str) -> list[Delete]:
    """Deletion of those that are there, are the owner's, and are not going already."""
    return [
        removal(kind, obj, why)
        for obj in live
        if obj is not None and is_owned_by(obj, owner_uid) and not is_deleting(obj)
    ]


def resource_version(live: Json) -> str | None:
    """The resourceVersion of a live object."""
    return meta(live).get("resourceVersion")
