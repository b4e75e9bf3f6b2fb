"""Whether and when to try again. The clock and the dice are the caller's."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ratchet.client.errors import Overloaded, PolicyError


@dataclass(frozen=True, slots=True)
class Retries:
    """How requests are tried again.

    Attributes:
        attempts: of one request at most, the first included.
        share: of all requests that may be retries in the long run, so that clients of a server in trouble do
            not multiply its load.
        burst: retries that may come at once after a quiet time.
        first: seconds at most before the second attempt; doubles for each further one, with full jitter.

    """

    attempts: int = 3
    share: float = 0.1
    burst: float = 10.0
    first: float = 0.005


class Budget:
    """A token bucket: each request adds its share, each retry takes one. Starts full."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._tokens = retries.burst

    def request(self) -> None:
        """A new request."""
        self._tokens = min(self._retries.burst, self._tokens + self._retries.share)

    def pause(
        self,
        error: PolicyError,
        attempt: int,
        remaining: float,
        dice: Callable[[float, float], float] = random.uniform,
    ) -> float | None:
        """Seconds to wait before the next attempt; None to give up.

        Args:
            error: of the attempt before.
            attempt: its number, from 1.
            remaining: seconds that are left for the request.
            dice: uniform between two numbers.

        """
        retries = self._retries
        if not error.passing or attempt >= retries.attempts:
            return None
        wait = dice(0.0, retries.first * 2 ** (attempt - 1))
        if isinstance(error, Overloaded) and error.retry_after is not None:
            # Not before it asks, and not all clients at once.
            wait = error.retry_after + dice(0.0, max(retries.first, 0.1 * error.retry_after))
        if wait >= remaining or self._tokens < 1:
            return None
        self._tokens -= 1
        return wait
