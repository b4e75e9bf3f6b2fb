"""Running programs, waiting for conditions, and the two ways in which either can fail."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

Argument = str | os.PathLike[str]


class StepError(Exception):
    """Something that was tried did not work. `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", log: Path | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.log = log


class MissingRequirementError(StepError):
    """The machine lacks something that cannot be got from here (EX_UNAVAILABLE)."""

    exit_code = 69


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}


def run(
    argv: Sequence[Argument],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | IO[bytes] | None = None,
    timeout: float | None = None,
    hint: str = "",
) -> None:
    """Runs to success, everything it prints going to the end of `log`.

    Raises:
        StepError: it exited with another status than 0, or took more than `timeout` seconds.

    """
    words = [os.fspath(word) for word in argv]
    target = log.open("ab") if log else None
    try:
        if target:
            target.write(f"$ {' '.join(words)}\n".encode())
            target.flush()
        with _as_file(stdin) as source:
            done = subprocess.run(
                words,
                stdin=source,
                stdout=target or subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                env=environment(env),
                timeout=timeout,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"{words[0]} took more than {timeout:.0f} s", hint=hint, log=log) from error
    finally:
        if target:
            target.close()
    if done.returncode != 0:
        raise StepError(f"`{' '.join(words)}` exited with {done.returncode}", hint=hint, log=log)


@contextmanager
def _as_file(stdin: str | IO[bytes] | None) -> Generator[IO[bytes] | int]:
    """What a program can read from. A text goes through an unnamed file, so that no pipe fills up."""
    if not isinstance(stdin, str):
        yield subprocess.DEVNULL if stdin is None else stdin
        return
    with tempfile.TemporaryFile() as file:
        file.write(stdin.encode())
        file.seek(0)
        yield file


def answer(
    argv: Sequence[Argument], *, env: Mapping[str, str] | None = None, timeout: float = 60
) -> str | None:
    """What a program prints, or None where it fails or takes more than `timeout` seconds."""
    try:
        done = subprocess.run(
            [os.fspath(word) for word in argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(env),
            timeout=timeout,
            check=False,
        )
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return None
    return done.stdout if done.returncode == 0 else None


def succeeds(argv: Sequence[Argument], *, env: Mapping[str, str] | None = None, timeout: float = 60) -> bool:
    return answer(argv, env=env, timeout=timeout) is not None


def wait_until(condition: Callable[[], bool], *, seconds: float, every: float = 0.5) -> bool:
    """True as soon as the condition holds, False where it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)
    return True


def tail(path: Path, lines: int = 25) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
