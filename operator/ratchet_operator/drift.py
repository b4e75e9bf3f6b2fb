"""Does the live object still say what we want? Looks only at what we set, and names the first difference.

What others add (defaults, a sidecar, an annotation) is theirs. What we ourselves set before and no longer
want is seen by the hash of the wanted object that each child carries.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

from ratchet_operator.kinds import Json, digest, sub

WANTED_HASH = "ratchet.dev/wanted"

_SUFFIXES = {
    "": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
    "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITIES = frozenset({"requests", "limits"})
_QUANTITY = frozenset({"sizeLimit", "averageValue"})
# Maps that the API server replaces as a whole: one label more selects other pods, or none.
_ATOMIC = frozenset({"selector", "nodeSelector", "matchLabels"})
_MERGE_KEYS = ("uid", "mountPath", "name", "containerPort", "port", "key", "path")


def quantity(value: object) -> Decimal | None:
    """A Kubernetes quantity such as ``250m`` or ``1Gi`` as a number; None where it is none."""
    text = str(value).strip()
    digits = text.rstrip("KMGTPEikmun")
    try:
        return Decimal(digits) * _SUFFIXES[text[len(digits) :]]
    except (InvalidOperation, KeyError):
        return None


def stamped(obj: Json, ignoring: tuple[tuple[str, ...], ...] = ()) -> Json:
    """The wanted object with its own hash in an annotation.

    Args:
        obj: wanted object.
        ignoring: paths that are left out of the hash, since they follow what is live.

    """
    base = obj
    for path in ignoring:
        base = _without(base, path)
    annotations = {**sub(obj, "metadata", "annotations"), WANTED_HASH: digest(base, 12)}
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


def _without(obj: Json, path: tuple[str, ...]) -> Json:
    """A copy that lacks one field; what is beside the path is shared."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in obj.items() if key != first}
    return {**obj, first: _without(sub(obj, first), tuple(rest))}


def first_difference(wanted: Any, live: Any, path: str = "") -> str | None:
    """The first field of `wanted` that `live` lacks, as ``path: live -> wanted``; None if all is there."""
    if wanted is None or wanted == {} or wanted == []:
        return None
    if isinstance(wanted, dict):
        return _dict_difference(wanted, live, path)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(wanted, list):
        return _list_difference(wanted, live, path)  # pyright: ignore[reportUnknownArgumentType]
    if wanted == live and type(wanted) is type(live):
        return None
    if type(wanted) is float and type(live) is int and wanted == live:
        return None
    return f"{path}: {_short(live)} -> {_short(wanted)}"


def _dict_difference(wanted: Json, live: Any, path: str) -> str | None:
    if not isinstance(live, dict):
        if all(first_difference(value, None) is None for value in wanted.values()):
            return None
        return f"{path}: {_short(live)} -> {_short(wanted)}"
    values: Json = live  # pyright: ignore[reportUnknownVariableType]
    quantities = path.rpartition(".")[2] in _QUANTITIES
    for key, value in wanted.items():
        at = f"{path}.{key}" if path else key
        if quantities or key in _QUANTITY:
            if key not in values or quantity(value) != quantity(values[key]):
                return f"{at}: {_short(values.get(key))} -> {_short(value)}"
            continue
        if key in _ATOMIC and value:
            if value != values.get(key):
                return f"{at}: {_short(values.get(key))} -> {_short(value)}"
            continue
        found = first_difference(value, values.get(key), at)
        if found:
            return found
    return None


def _list_difference(wanted: list[Any], live: Any, path: str) -> str | None:
    if not isinstance(live, list):
        return f"{path}: {_short(live)} -> {_short(wanted)}"
    items: list[Any] = live  # pyright: ignore[reportUnknownVariableType]
    key = _merge_key(wanted)
    if key is None:
        if len(wanted) != len(items):
            return f"{path}: {len(items)} items -> {len(wanted)} items"
        pairs = zip(wanted, items, strict=True)
    else:
        by_key: dict[Any, Any] = {item.get(key): item for item in items if isinstance(item, dict)}  # pyright: ignore[reportUnknownMemberType]
        pairs = ((item, by_key.get(item[key])) for item in wanted)
    for position, (want, have) in enumerate(pairs):
        found = first_difference(want, have, f"{path}[{position}]")
        if found:
            return found
    return None


def _merge_key(items: list[Any]) -> str | None:
    """What tells the items apart; None where only their order does, as of one port over UDP and TCP."""
    for key in _MERGE_KEYS:
        named = all(isinstance(item, dict) and key in item for item in items)
        if named and len({item[key] for item in items}) == len(items):
            return key
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def merge_patch(live: Json, wanted: Json) -> Json:
    """The JSON merge patch (RFC 7386) that turns `live` into `wanted`; empty where nothing differs."""
    patch: Json = {key: None for key in live if key not in wanted}
    for key, value in wanted.items():
        have = live.get(key)
        if isinstance(value, dict) and isinstance(have, dict):
            nested = merge_patch(have, value)  # pyright: ignore[reportUnknownArgumentType]
            if nested:
                patch[key] = nested
        elif have != value or key not in live:
            patch[key] = value
    return patch
