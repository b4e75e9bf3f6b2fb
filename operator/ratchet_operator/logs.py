"""What the operator logs, and what it leaves to itself."""

import logging
import sys

from ratchet.logs import write_json_lines


def configure(level: str) -> None:
    """Send everything to stderr; kopf speaks only when something is wrong."""
    write_json_lines(sys.stderr, level)
    for noisy in ("kopf", "aiohttp", "kubernetes"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
