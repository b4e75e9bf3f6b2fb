"""Which difference of a status is worth a write now, and which can wait."""

from collections.abc import Collection

from ratchet_operator.drift import merge_patch
from ratchet_operator.kinds import Json, items


def soft_patch(
    live: Json, wanted: Json, due_in: float, progress: Collection[str]
) -> tuple[Json | None, float | None]:
    """The merge patch to write now, or in how many seconds to look again.

    Args:
        live: status as it is.
        wanted: status as it should be.
        due_in: seconds until progress may be written.
        progress: fields that wait until then. A reason or message whose condition's status stays waits too.

    """
    patch = merge_patch(live, wanted)
    news = [key for key in patch if key != "activeSeconds"]
    if not news:
        return None, None
    hard = [key for key in news if key not in progress]
    if hard == ["conditions"] and _answers(live) == _answers(wanted):
        hard = []
    if not hard and due_in > 0:
        return None, due_in
    return patch, None


def _answers(status: Json) -> list[tuple[object, object, object]]:
    return [
        (item.get("type"), item.get("status"), item.get("observedGeneration"))
        for item in items(status, "conditions")
    ]
