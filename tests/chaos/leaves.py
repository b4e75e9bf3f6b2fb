"""Every leaf of a spec, from the CRD's schema, with another valid value for each."""

import copy
import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
Path = tuple[str | int, ...]
WORDS = (
    "other", "other-value", "7Mi", "7m", "https://other.example", "example.com/other", "/other", "other:make",
    f"sha256:{7:064x}",
)  # fmt: skip


def leaves(schema: Json, value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each leaf under `value`, present or absent, and what to write there instead.

    Items of a list are entered, without what they lack: most of it excludes what they have.
    """
    if "properties" in schema and (value is not None or not path):
        inside = path and isinstance(path[-1], int)
        for name, member in schema["properties"].items():
            if not inside or name in value:
                yield from leaves(member, value.get(name), (*path, name))
    elif schema.get("type") == "array" and "properties" in schema["items"] and value:
        for number, item in enumerate(value):
            yield from leaves(schema["items"], item, (*path, number))
        yield path, value[:-1]
    else:
        other = another(schema, value)
        if other is not None:
            yield path, other


def another(schema: Json, value: Any) -> Any:
    """A valid value that differs; None where there is none, or where it takes more than a leaf."""
    if "enum" in schema:
        return next((choice for choice in schema["enum"] if choice != value), None)
    if schema.get("x-kubernetes-int-or-string"):
        return "3" if value != "3" else "4"
    match schema.get("type"):
        case "boolean":
            return not value
        case "integer":
            least, most = schema.get("minimum", 0), schema.get("maximum", 2**31)
            return next(n for n in ((value or 0) + 1, (value or 0) - 1) if least <= n <= most)
        case "number":
            least, most = schema.get("minimum", 0), schema.get("maximum", 2**31)
            return next(n for n in (0.25, 0.75, 7.5) if n != value and least <= n <= most)
        case "string":
            fits = re.compile(schema.get("pattern", ""))
            return next(word for word in WORDS if word != value and fits.search(word))
        case "array":
            item = another(schema["items"], (value or [None])[0])
            return None if item is None else [*(value or []), item]
        case "object" if "additionalProperties" in schema:
            return {**(value or {}), "other": another(schema["additionalProperties"], None)}
        case "object" if schema.get("x-kubernetes-preserve-unknown-fields"):
            return {**(value or {}), "other": 1}
        case _:
            return None


def changed(spec: Json, path: Path, value: Any) -> Json:
    """The spec with another value at a path."""
    out = copy.deepcopy(spec)
    here: Any = out
    for part in path[:-1]:
        here = here[part] if isinstance(here, list) else here.setdefault(part, {})
    here[path[-1]] = value
    return out
