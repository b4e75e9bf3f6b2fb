"""Which checkpoints must stay because a server may be started from them. The operator keeps the list."""

import logging
from pathlib import Path

from pydantic import TypeAdapter

log = logging.getLogger(__name__)

_NAMES = TypeAdapter(frozenset[str])


class KeptFile:
    """A JSON list of names of checkpoints, which changes while the trainer runs.

    Args:
        path: of the list; None where nobody keeps one, and nothing has to stay.

    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._is_readable = True

    def names(self) -> frozenset[str] | None:
        """What must stay; None where that can't be told, which is said once."""
        if self._path is None:
            return frozenset()
        try:
            found = _NAMES.validate_json(self._path.read_bytes())
        except (OSError, ValueError) as error:
            if self._is_readable:
                log.warning("no checkpoint is removed, for nobody can tell which of them serve: %s", error)
            self._is_readable = False
            return None
        self._is_readable = True
        return found
