"""The reference of the API as Markdown, from the same schemas as the CRDs."""

import json
from collections.abc import Iterator
from typing import Any

from ratchet.api import API_VERSION

Schema = dict[str, Any]

INTRODUCTION = f"""\
# API reference: {API_VERSION}

Every field of every object, made from the models by `make manifests`. `ratchet validate -f FILE` says
offline what the API server would refuse, and `kubectl explain rltrainingjob.spec` knows this page too.
**Bold** fields must be written.
"""


def markdown(schemas: dict[str, Schema]) -> str:
    """Write the page for some kinds: their root schemas by name."""
    parts = [INTRODUCTION]
    for name, schema in schemas.items():
        parts.append(f"## {name}\n\n{schema['description']}\n")
        for part in ("spec", "status"):
            parts.append(f"### {name} {part}\n\n| field | type | default | |\n| --- | --- | --- | --- |")
            rows = _rows(schema["properties"][part], "")
            parts.append("\n".join(rows) + "\n")
        parts.append(f"### Rules of {name}\n")
        parts.append("\n".join(_rules(schema, "")) + "\n")
    return "\n".join(parts)


def _rows(schema: Schema, path: str) -> Iterator[str]:
    required = schema.get("required", ())
    for name, member in schema.get("properties", {}).items():
        at = f"{path}.{name}" if path else name
        shown = f"**{at}**" if name in required else at
        inner = member.get("items", member)
        default = member.get("default")
        # The default of an object is that of its fields, which follow.
        told = "" if default is None or "properties" in member else f"`{json.dumps(default)}`"
        yield f"| {shown} | {_type(member)} | {told} | {_cell(member.get('description', ''))} |"
        yield from _rows(inner, f"{at}[]" if inner is not member else at)


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"map to {_type(values)}"  # pyright: ignore[reportUnknownArgumentType]
    if "minimum" in schema or "maximum" in schema:
        return f"{schema['type']}, {_range(schema)}"
    return str(schema["type"])


def _range(schema: Schema) -> str:
    bounds: list[str] = []
    for key, exclusive, strict, loose in (
        ("minimum", "exclusiveMinimum", ">", "≥"),
        ("maximum", "exclusiveMaximum", "<", "≤"),
    ):
        if key in schema:
            bounds.append(f"{strict if schema.get(exclusive) else loose} {schema[key]}")
    return " and ".join(bounds)


def _rules(schema: Schema, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"- {f'`{path}`: ' if path else ''}{rule['message']}"
    for name, member in schema.get("properties", {}).items():
        yield from _rules(member, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
