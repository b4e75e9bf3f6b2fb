"""The one way in which this package tries again: bounded exponential backoff with jitter."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from redis import exceptions

from ratchet.experience.errors import RedisUnreachable

T = TypeVar("T")

# What passes by itself: Redis restarts, loads its data, fails over, or has room once the learner has read.
PASSING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.TryAgainError,
    exceptions.ClusterDownError,
)
REFUSED = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on trying, in seconds.

    Attributes:
        sleep: waits between two tries; whatever it raises ends the trying.

    """

    total: float = 120.0
    first: float = 0.05
    longest: float = 5.0
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic


def persist(
    operation: Callable[[], T], patience: Patience, on_failure: Callable[[], object] = lambda: None
) -> T:
    """Calls `operation` until it succeeds.

    Args:
        operation: must bear being executed more than once.
        patience: how long to go on.
        on_failure: called after each try that failed.

    Raises:
        RedisUnreachable: patience ran out, or Redis refused the credentials.

    """
    begun = patience.clock()
    pause = patience.first
    while True:
        try:
            return operation()
        except REFUSED as error:
            raise RedisUnreachable(
                f"Redis refused the user or password of REDIS_URL ({type(error).__name__})"
            ) from None
        except PASSING as error:
            on_failure()
            spent = patience.clock() - begun
            if spent >= patience.total:
                raise RedisUnreachable(_sentence(error, spent)) from None
        patience.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, patience.longest)


def _sentence(error: Exception, spent: float) -> str:
    if isinstance(error, exceptions.OutOfMemoryError):
        return (
            f"Redis had no room for {spent:.0f} seconds: raise experience.managed.maxMemory, "
            "or the maxmemory of the job's own Redis"
        )
    return f"Redis did not answer for {spent:.0f} seconds: {type(error).__name__}: {error}"
