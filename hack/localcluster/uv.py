"""The uv binary that image builds copy: the machine's own, else one from the package index."""

from __future__ import annotations

import sys
from pathlib import Path

from localcluster.settings import Settings
from localcluster.shell import StepError, answer, run

# `uv` on PATH may be a version manager's shim, a script that is worth nothing in an image; uv itself tells.
FIND = "import uv; print(uv.find_uv_bin())"


def binary(settings: Settings, log: Path) -> Path:
    """The real executable.

    Raises:
        StepError: it is not on this machine, and cannot be installed.

    """
    environment = settings.home / "uv"
    python = environment / "bin" / "python"
    found = _ask(Path(sys.executable)) or _ask(python)
    if found is None:
        run([sys.executable, "-m", "venv", environment], log=log)
        run(
            [python, "-m", "pip", "install", "--quiet", "uv"],
            log=log,
            hint="The Python package index cannot be reached.",
        )
        found = _ask(python)
    if found is None:
        raise StepError("uv is installed but does not say where", log=log)
    return found


def _ask(python: Path) -> Path | None:
    printed = answer([python, "-c", FIND]) if python.exists() else None
    return Path(printed.strip()) if printed else None
