"""How a process says why it ends: a log line, and a message that Kubernetes keeps with its container."""

import logging
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "RATCHET_TERMINATION_LOG"
LONGEST_BYTES = 4096  # of what Kubernetes keeps


def leave(
    environment: Mapping[str, str], code: int, message: str, log: logging.Logger, before: str = ""
) -> int:
    """Writes the message where RATCHET_TERMINATION_LOG says, and to the log; the exit code. What stands
    `before` it, in a line of its own, is for programs, and left out where Kubernetes would not keep both.
    """
    log.error(message, extra={"fields": {"exitCode": int(code)}})
    both = f"{before}\n{message}"
    write_last_words(environment, both if before and fits(both) else message, log)
    return int(code)


def fits(message: str) -> bool:
    """Whether Kubernetes keeps all of it."""
    return len(message.encode()) <= LONGEST_BYTES


def write_last_words(environment: Mapping[str, str], message: str, log: logging.Logger) -> None:
    """Writes as much of the message as Kubernetes keeps."""
    path = Path(environment.get(VARIABLE, "/dev/termination-log"))
    try:
        path.write_text(message.encode()[:LONGEST_BYTES].decode(errors="ignore"))
    except OSError as error:
        log.warning("no termination message can be left", extra={"fields": {"error": error.strerror}})
