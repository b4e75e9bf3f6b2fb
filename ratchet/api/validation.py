"""What the API server would refuse, found offline and said in its words.

Rules give the very sentence that the CRD carries; a contract test holds both to it. Errors of the
schema use the API server's phrases ("Unsupported value", "unknown field") and add what to write.
A rule is judged only where everything below it is valid.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from pydantic import ValidationError

from ratchet.api import API_VERSION, GROUP
from ratchet.api.crd import INT_OR_STRING, PRESERVE, Schema, root_schema
from ratchet.api.v1alpha1.base import RulesBrokenError
from ratchet.api.v1alpha1.kinds import KINDS, Kind

Path = tuple[str | int, ...]
Mapping = dict[str, Any]

# https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.35/#objectmeta-v1-meta
METADATA_FIELDS = frozenset(
    {"annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers"}
    | {"generateName", "generation", "labels", "managedFields", "name", "namespace", "ownerReferences"}
    | {"resourceVersion", "selfLink", "uid"}
)
GENERATED_SUFFIX = "xxxxx"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason for refusal: where in the YAML, and a sentence."""

    path: Path
    sentence: str

    @property
    def where(self) -> str:
        """The path as people write it: ``spec.trainer.volumes[0].name``; empty for the whole object."""
        return dotted(self.path)


def dotted(path: Path) -> str:
    """Join a path: names by dots, indices in brackets."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def is_ratchets(document: object) -> bool:
    """Tell whether a YAML document claims to be of Ratchet's API group."""
    if not isinstance(document, dict):
        return False
    version = cast(Mapping, document).get("apiVersion")
    return isinstance(version, str) and version.split("/")[0] == GROUP


def problems(document: object) -> list[Problem]:
    """Return every reason why the API server would refuse this object; empty when it would take it."""
    if not isinstance(document, dict):
        return [Problem((), "is not a Kubernetes object: write apiVersion, kind, metadata and spec")]
    resource = cast(Mapping, document)
    if resource.get("apiVersion") != API_VERSION:
        return [_unsupported(("apiVersion",), resource.get("apiVersion"), [API_VERSION])]
    kind = KINDS.get(str(resource.get("kind")))
    if kind is None:
        return [_unsupported(("kind",), resource.get("kind"), list(KINDS))]

    schema = _schema_of(kind)
    found = [*_unknown_at_root(resource, schema), *_metadata(resource.get("metadata"))]
    if resource.get("spec") is None:
        return [*found, Problem(("spec",), "Required value: what the object should be")]
    spec = _without_nulls(resource["spec"], schema["properties"]["spec"])
    found.extend(_spec(kind, spec, schema))
    if not found:
        found.extend(Problem((), rule.message) for rule in kind.rules if not rule.holds(_named(resource)))
    return found


@cache
def _schema_of(kind: Kind) -> Schema:
    return root_schema(kind)


def _named(resource: Mapping) -> Mapping:
    """Return the object with the kind of name that generateName would give it."""
    metadata = cast(Mapping, resource["metadata"])
    return {"metadata": {"name": metadata.get("name") or metadata["generateName"] + GENERATED_SUFFIX}}


def _unknown_at_root(resource: Mapping, schema: Schema) -> Iterator[Problem]:
    for key in resource:
        if key not in schema["properties"]:
            yield _unknown((key,), schema["properties"])


def _metadata(metadata: object) -> Iterator[Problem]:
    if not isinstance(metadata, dict):
        yield Problem(("metadata",), "Required value: write metadata: {name: …}")
        return
    known = cast(Mapping, metadata)
    for key in known:
        if key not in METADATA_FIELDS:
            yield _unknown(("metadata", key), METADATA_FIELDS)
    names = [known.get("name"), known.get("generateName")]
    if not any(names):
        yield Problem(("metadata", "name"), "Required value: name or generateName is required")
    for key, name in zip(("name", "generateName"), names, strict=True):
        if name is not None and not isinstance(name, str):
            yield Problem(("metadata", key), f"must be a string: write {key}: {json.dumps(str(name))}")


def _without_nulls(value: Any, schema: Schema) -> Any:
    """Leave out the fields that are null, as the API server does before it sets defaults."""
    if isinstance(value, dict) and not schema.get(PRESERVE):
        kept: Mapping = {}
        for key, member in cast(Mapping, value).items():
            below = _below(schema, key)
            if member is not None or not below:
                kept[key] = _without_nulls(member, below)
        return kept
    if isinstance(value, list):
        items = cast(list[Any], value)
        return [_without_nulls(item, schema.get("items", {})) for item in items]
    return cast(object, value)


def _below(schema: Schema, part: str | int) -> Schema:
    if isinstance(part, int):
        return schema.get("items", {})
    if part in schema.get("properties", {}):
        return schema["properties"][part]
    return schema.get("additionalProperties", {})


def _spec(kind: Kind, spec: object, schema: Schema) -> list[Problem]:
    try:
        # JSON in strict mode is what the API server reads: "8" is no integer there either.
        kind.spec.model_validate_json(
            json.dumps(spec, default=str), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        found: dict[Path, Problem] = {}
        rules: list[Problem] = []
        for item in error.errors(include_url=False):
            path, at = _locate(("spec", *item["loc"]), schema)
            broken = item.get("ctx", {}).get("error")
            if isinstance(broken, RulesBrokenError):
                rules.extend(Problem(path, message) for message in broken.messages)
            else:
                found[path] = _sentence(cast(Mapping, item), path, at, schema)
        return [*found.values(), *rules]
    return []


def _locate(location: Iterable[str | int], schema: Schema) -> tuple[Path, Schema]:
    """Follow pydantic's location through the schema, dropping the tags of union members at its end."""
    path: Path = ()
    for part in location:
        if schema.get(INT_OR_STRING):
            break
        schema, path = _below(schema, part), (*path, part)
    return path, schema


def _sentence(item: Mapping, path: Path, at: Schema, root: Schema) -> Problem:
    """Put one of pydantic's errors into the API server's words."""
    value, context, kind = item["input"], item.get("ctx", {}), str(item["type"])
    hint = f": {at['description']}" if "description" in at else ""
    if at.get(INT_OR_STRING):
        wrong = (
            f"should match '{at['pattern']}'"
            if isinstance(value, str)
            else "must be of type integer or string"
        )
        return _invalid(path, value, f"{wrong}: write a quantity such as 500m, 2 or 4Gi")
    match kind:
        case "extra_forbidden":
            parent = _locate(path[:-1], root)[1]
            return _unknown(path, parent.get("properties", {}))
        case "missing":
            return Problem(path, f"Required value{hint}")
        case "literal_error":
            return _unsupported(path, value, at.get("enum", at.get("items", {}).get("enum", [])))
        case "string_pattern_mismatch":
            return _invalid(path, value, f"should match '{at.get('pattern', context.get('pattern'))}'{hint}")
        case "string_too_long":
            return Problem(path, f"Too long: may not be more than {context['max_length']} bytes")
        case "string_too_short":
            return _invalid(path, value, f"should be at least {context['min_length']} chars long{hint}")
        case "too_long":
            return Problem(
                path, f"Too many: {context['actual_length']}: must have at most {context['max_length']} items"
            )
        case "too_short":
            return _invalid(path, value, f"should have at least {context['min_length']} items")
        case "greater_than_equal":
            return _invalid(path, value, f"should be greater than or equal to {_number(context['ge'])}{hint}")
        case "greater_than":
            return _invalid(path, value, f"should be greater than {_number(context['gt'])}{hint}")
        case "less_than_equal":
            return _invalid(path, value, f"should be less than or equal to {_number(context['le'])}{hint}")
        case "less_than":
            return _invalid(path, value, f"should be less than {_number(context['lt'])}{hint}")
        case _ if "type" in at:
            return _invalid(path, value, f"must be of type {at['type']}")
        case _:
            return Problem(path, str(item["msg"]))


def _invalid(path: Path, value: object, sentence: str) -> Problem:
    shown = json.dumps(value, default=str, ensure_ascii=False)
    return Problem(path, f"Invalid value: {shown if len(shown) <= 60 else shown[:59] + '…'}: {sentence}")


def _unsupported(path: Path, value: object, supported: list[str]) -> Problem:
    listed = ", ".join(json.dumps(member) for member in supported)
    return Problem(path, f"Unsupported value: {json.dumps(value, default=str)}: supported values: {listed}")


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _unknown(path: Path, known: Iterable[str]) -> Problem:
    near = _nearest(str(path[-1]), list(known))
    return Problem(path, f'unknown field "{dotted(path)}"' + (f"; did you mean {near}?" if near else ""))


def _nearest(name: str, known: list[str]) -> str | None:
    folded = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower().replace("_", ""), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else None
