"""CustomResourceDefinitions from the pydantic models: ``python -m ratchet.api.crd [--check]``.

The models' JSON schema becomes a *structural* schema, the dialect that the API server takes:
references inlined, optional means "not required" and never null, rules as
``x-kubernetes-validations``. What limits a field belongs to its model, not here.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

import argparse
import difflib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from ratchet.api import GROUP, VERSION, reference
from ratchet.api.v1alpha1.base import ApiModel, Rule, Transition
from ratchet.api.v1alpha1.kinds import KINDS, Column, Kind

Schema = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
LONGEST_MESSAGE = 1024
PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"


class _Generator(GenerateJsonSchema):
    """Notes the rules of each model beside its schema, where pydantic knows both."""

    def model_schema(self, schema: Any) -> Schema:
        json_schema = super().model_schema(schema)
        model = cast(type[BaseModel], schema["cls"])
        if issubclass(model, ApiModel):
            validations = [_validation(rule) for rule in (*model.rules, *model.transitions)]
            if validations:
                json_schema["x-kubernetes-validations"] = validations
        if not model.__doc__:
            json_schema.pop("description", None)
        return json_schema


def _validation(rule: Rule | Transition) -> Schema:
    if len(rule.message) > LONGEST_MESSAGE:
        raise ValueError(f"a message has at most {LONGEST_MESSAGE} characters: {rule.message[:60]}…")
    return {"rule": rule.cel, "message": rule.message}


def structural(model: type[ApiModel]) -> Schema:
    """Build the structural schema of a model."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = dict(node)
    if "$ref" in node:
        target = definitions[node.pop("$ref").removeprefix("#/$defs/")]
        return _structural({**target, **node}, definitions)
    if "anyOf" in node:
        members = [member for member in node.pop("anyOf") if member != {"type": "null"}]
        if node.get(INT_OR_STRING) or any(member.get(INT_OR_STRING) for member in members):
            return _int_or_string(node, members)
        if len(members) != 1:
            raise ValueError(f"a structural schema has no unions: {members}")
        return _structural({**members[0], **node}, definitions)

    out: Schema = {"description": inspect.cleandoc(node["description"])} if "description" in node else {}
    for key in (
        *("type", "format", "pattern", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"),
        *("minimum", "maximum", "enum", PRESERVE, "x-kubernetes-validations"),
    ):
        if key in node:
            out[key] = node[key]
    if "const" in node:
        out["enum"] = [node["const"]]
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in node:
            out[bound.lower()], out[f"exclusive{bound}"] = node[f"exclusive{bound}"], True
    if node.get("default") is not None:
        out["default"] = _without_none(node["default"])
    if "items" in node:
        out["items"] = _structural(node["items"], definitions)
    if "properties" in node:
        out["properties"] = {
            name: _structural(member, definitions) for name, member in node["properties"].items()
        }
        if "required" in node:
            out["required"] = node["required"]
        _mark_conditions(out["properties"])
    elif isinstance(node.get("additionalProperties"), dict) and not node.get(PRESERVE):
        out["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    return out


def _int_or_string(node: Schema, members: list[Schema]) -> Schema:
    """One value that is an integer or a string; the string's pattern is kept."""
    flat: list[Schema] = []
    for member in members:
        flat.extend(member.get("anyOf", [member]))
    out: Schema = {"description": node["description"]} if "description" in node else {}
    out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    for member in flat:
        out.update({key: member[key] for key in ("pattern", "maxLength") if key in member})
    return {**out, INT_OR_STRING: True}


def _mark_conditions(properties: dict[str, Schema]) -> None:
    """Conditions are a map by type, so that two writers can each own theirs."""
    if "conditions" in properties:
        properties["conditions"] |= {
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        }


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        members = cast(dict[str, Any], value)
        return {key: _without_none(member) for key, member in members.items() if member is not None}
    return value


def root_schema(kind: Kind) -> Schema:
    """Build the schema of a whole object of a kind."""
    return {
        "description": kind.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # The limit is the API server's own; said here, it bounds the cost of the rules on it.
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}},
            "spec": structural(kind.spec),
            "status": structural(kind.status),
        },
        "x-kubernetes-validations": [_validation(rule) for rule in kind.rules],
    }


def _column(column: Column) -> Schema:
    out: Schema = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.priority:
        out["priority"] = column.priority
    if column.description:
        out["description"] = column.description
    return out


def definition(kind: Kind) -> Schema:
    """Build the CustomResourceDefinition of a kind."""
    scale = {
        "specReplicasPath": kind.scale.spec_replicas,
        "statusReplicasPath": kind.scale.status_replicas,
    }
    if kind.scale.selector:
        scale["labelSelectorPath"] = kind.scale.selector
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "ratchet"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": ["ratchet", "rl"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "subresources": {"status": {}, "scale": scale},
                    "schema": {"openAPIV3Schema": root_schema(kind)},
                }
            ],
        },
    }


class _Dumper(yaml.SafeDumper):
    """Lists indented below their key, and no anchors: what people write by hand."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)  # pyright: ignore[reportUnknownMemberType]

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(document: Schema) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


NOTICE = "Made by `make manifests` from ratchet/api; don't edit."


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file, below the repository's root, and its text."""
    for kind in KINDS.values():
        document = definition(kind)
        name = f"{GROUP}_{kind.plural}.yaml"
        yield Path("crds") / name, f"# {NOTICE}\n{_dump(document)}"
        document["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
        body = _dump(document)
        if "{{" in body:
            raise ValueError(f"{kind.name}: double braces would be read by helm")
        yield (
            Path("charts/ratchet/templates/crds") / name,
            f"{{{{- /* {NOTICE} */ -}}}}\n{{{{- if .Values.crds.install }}}}\n{body}{{{{- end }}}}\n",
        )
    yield (
        Path("docs/api.md"),
        reference.markdown({name: root_schema(kind) for name, kind in KINDS.items()}),
    )


def drift(root: Path) -> list[str]:
    """Name what differs between the files below root and the models; empty when nothing does."""
    found: list[str] = []
    for path, text in files():
        target = root / path
        if not target.exists():
            found.append(f"{path}: is missing")
            continue
        diff = difflib.unified_diff(
            target.read_text().splitlines(), text.splitlines(), str(path), "models", lineterm="", n=1
        )
        lines = list(diff)
        if lines:
            changed = sum(line[0] in "+-" for line in lines[2:])
            found.append("\n".join([f"{path}: {changed} lines differ", *lines[2:14]]))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with --check say what differs."""
    parser = argparse.ArgumentParser(prog="python -m ratchet.api.crd", description="Write the CRDs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    options = parser.parse_args(arguments)
    if options.check:
        found = drift(options.root)
        if found:
            sys.stderr.write("\n".join([*found, "run `make manifests`", ""]))
        return 1 if found else 0
    for path, text in files():
        (options.root / path).parent.mkdir(parents=True, exist_ok=True)
        (options.root / path).write_text(text)
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
