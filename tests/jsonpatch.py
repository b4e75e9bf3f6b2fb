"""What an API server makes of a JSON patch (RFC 6902) of `test` and `replace`."""

import copy
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]


def patched(obj: Json, operations: Iterable[Json]) -> Json | None:
    """The patched object; None where a test does not hold, and then nothing is changed."""
    found = copy.deepcopy(obj)
    for one in operations:
        *path, last = [int(part) if part.isdecimal() else part for part in one["path"].split("/")[1:]]
        here: Any = found
        for part in path:
            here = here[part]
        if one["op"] == "test":
            if here[last] != one["value"]:
                return None
        elif one["op"] == "replace":
            here[last] = copy.deepcopy(one["value"])
        else:
            raise ValueError(one["op"])
    return found
