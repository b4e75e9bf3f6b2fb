"""A list of steps, each skipped where its product exists, with a line of progress and a log for each."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.shell import StepError


@dataclass(frozen=True)
class Step:
    title: str
    present: Callable[[], bool]
    """Whether the product exists; asked on every run, so that a step that was cut short is done again."""
    make: Callable[[Path], None]
    """Makes the product; what it prints belongs into the log file it is given."""


def run_steps(steps: Sequence[Step], logs: Path) -> None:
    """Runs the steps in order.

    Raises:
        StepError: as the failed step raised it, with that step's log.

    """
    width = len(str(len(steps)))
    for number, step in enumerate(steps, 1):
        print(f"[{number:>{width}}/{len(steps)}] {step.title} … ", end="", flush=True)
        started = time.monotonic()
        if step.present():
            print("present")
            continue
        log = logs / f"{slug(step.title)}.log"
        log.write_text("")
        try:
            step.make(log)
        except StepError as error:
            print("FAILED", flush=True)
            error.log = error.log or log
            raise
        except BaseException:
            print("interrupted", flush=True)
            raise
        print(f"{time.monotonic() - started:.0f} s", flush=True)


def slug(title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")


def content_hash(*parts: str | Path) -> str:
    """Twelve hexadecimal digits over texts and over the names, modes and contents of files and folders."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            _add(digest.update, b"text", part.encode())
            continue
        for path in _files(part):
            executable = bool(path.stat().st_mode & 0o100)
            name = f"{path.relative_to(part.parent)} {executable}"
            _add(digest.update, name.encode(), path.read_bytes())
    return digest.hexdigest()[:12]


def _add(update: Callable[[bytes], None], *chunks: bytes) -> None:
    for chunk in chunks:
        update(len(chunk).to_bytes(8, "big"))
        update(chunk)


def _files(path: Path) -> Iterable[Path]:
    return sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]
