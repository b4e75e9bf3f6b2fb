"""Manifests from files: YAML with more than one document, duplicate keys refused as kubectl does."""

import sys
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from ratchet.api.validation import Problem, is_ratchets, problems
from ratchet.cli.outcome import CommandError, Exit

STDIN = "-"
SUFFIXES = frozenset({".yaml", ".yml"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """One document of a file."""

    file: str
    content: Any

    @property
    def name(self) -> str:
        """``Kind/name``, as far as the document says."""
        content: object = self.content
        if not isinstance(content, dict):
            return "(no object)"
        resource = cast(dict[str, Any], content)
        metadata = resource.get("metadata")
        known = cast(dict[str, Any], metadata) if isinstance(metadata, dict) else {}
        return f"{resource.get('kind', '?')}/{known.get('name') or known.get('generateName') or '?'}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of one document."""

    manifest: Manifest
    problem: Problem

    def __str__(self) -> str:
        parts = (self.manifest.file, self.manifest.name, self.problem.where, self.problem.sentence)
        return ": ".join(part for part in parts if part)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f'key "{name}" is written twice', problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def expand(files: list[str]) -> list[str]:
    """Put in place of each folder the YAML files right inside it."""
    expanded: list[str] = []
    for file in files:
        if Path(file).is_dir():
            inside = sorted(str(path) for path in Path(file).iterdir() if path.suffix in SUFFIXES)
            if not inside:
                raise CommandError(f"{file}: has no file that ends in .yaml or .yml", Exit.USAGE)
            expanded.extend(inside)
        else:
            expanded.append(file)
    return expanded


def read(file: str) -> list[Manifest]:
    """Read the documents of a file, or of standard input for ``-``.

    Raises:
        CommandError: the file can't be read (exit 2) or is not YAML (exit 1).

    """
    try:
        text = sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}", Exit.USAGE) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file}: is not text in UTF-8", Exit.USAGE) from error
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise CommandError(f"{file}: {at}not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise CommandError(f"{file}: not valid YAML: {error}") from error
    return [Manifest(file, document) for document in documents if document is not None]


def findings(manifests: list[Manifest]) -> list[Finding]:
    """Return every problem of the documents that are Ratchet's, or that are no object at all."""
    return [
        Finding(manifest, problem)
        for manifest in manifests
        if judged(manifest)
        for problem in problems(manifest.content)
    ]


def judged(manifest: Manifest) -> bool:
    """Tell whether a document is for Ratchet to judge; a Secret beside a job is not."""
    content = manifest.content
    return is_ratchets(content) or not (isinstance(content, dict) and "apiVersion" in content)
