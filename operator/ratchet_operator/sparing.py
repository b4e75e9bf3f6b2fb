"""What many share goes on where one of them breaks it: one object's input must not end a leader for all."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

from ratchet_operator.metrics import ERRORS

log = logging.getLogger("ratchet.sparing")


@contextmanager
def sparing(what: str, key: str) -> Generator[None]:
    """Log and count an exception, and go on behind the block.

    Args:
        what: was done, as ratchet_errors_total has it.
        key: of the object that it was done for.

    """
    try:
        yield
    except Exception:
        ERRORS.labels(f"{what} bug").inc()
        log.exception("%s broke", what, extra={"key": key})
