"""The server behind a route: asked within a time, checked, counted on its arm, left alone when it fails."""

import asyncio
import ssl
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ratchet_inference.asking import SHADOW, Question
from ratchet_inference.breaker import Breaker
from ratchet_inference.fitting import Fitting
from ratchet_inference.hop import BREAKER_OPEN, Hop, HopError
from ratchet_inference.replies import read_reply
from ratchet_inference.stats import Stats

# After which a server that was never reached is tried with copies all the same, which is evidence against it.
UNREACHED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Forwarding:
    """How the canary is asked.

    Attributes:
        seconds: for its answer.
        token: that it wants.
        most: questions at once.
        copies: questions at once whose answers nobody gets, beside those.
        tls: for https, None for what the machine trusts.
        deterministic: what it does where a question does not say; it is started with this server's settings.

    """

    seconds: float = 0.03
    token: str | None = None
    most: int = 128
    copies: int = 32
    tls: ssl.SSLContext | None = None
    deterministic: bool = False


class Behind:
    """One server, asked as one arm.

    Args:
        url: of the server.
        digest: of the policy that it must answer with; None for any.
        arm: `canary` for answers that are given to clients, `shadow` for those that nobody gets.
        forwarding: how.
        breaker: of this server, for both arms.
        stats: where it is counted.

    Raises:
        ValueError: the URL is none.

    """

    def __init__(
        self, url: str, digest: str | None, arm: str, forwarding: Forwarding, breaker: Breaker, stats: Stats
    ) -> None:
        most = forwarding.copies if arm == SHADOW else forwarding.most
        self._hop = Hop(url, arm, forwarding.token, most, forwarding.tls)
        self.digest = digest
        self._arm = arm
        self._seconds = forwarding.seconds
        self._deterministic = forwarding.deterministic
        self._stats = stats
        self.breaker = breaker

    @property
    def full(self) -> bool:
        """It is asked as many questions as it may be."""
        return self._hop.full

    def close(self) -> None:
        """Closes what is idle; what is in use ends with its answer."""
        self._hop.close()

    async def reach(self) -> None:
        """Keeps everybody from the server until there is a way to it.

        One that is ready may be out of reach for a second more, until every node knows the way; and its name
        takes longer to look up than a question can wait.
        """
        self.breaker.hold(asyncio.get_running_loop().time() + UNREACHED_SECONDS)
        if await self._hop.reach():
            self.breaker.succeeded()

    async def ask(self, question: Question, fitting: Fitting) -> None:
        """Fills a question with the server's answer.

        Raises:
            HopError: it gave none that is valid, which is counted, or was not asked.

        """
        now = asyncio.get_running_loop().time
        if not self.breaker.allows and not (self._arm == SHADOW and self.breaker.tries(now())):
            raise HopError(BREAKER_OPEN)
        space, rows = fitting.spec.action, len(question)
        began = perf_counter()
        try:
            body = await self._hop.ask(question.body(), self._seconds, fitting.spaces)
            read_reply(question, body, fitting, self.digest)
        except HopError as error:
            # That this server asks no more at once says nothing of the other one.
            if error.asked:
                self.breaker.failed(now())
                tally = self._stats.tally(self._arm, self.digest or "", space)
                tally.errors[error.reason] += rows
                tally.mask_violations += rows * (error.reason == "canary-mask-violation")
                tally.answered(began, perf_counter())
            raise
        self.breaker.succeeded()
        question.arms = [self._arm] * rows
        tally = self._stats.tally(self._arm, question.digests[0], space)
        tally.predictions += rows
        greedy = self._deterministic if question.deterministic is None else question.deterministic
        tally.actions.add(np.array(question.actions), rows if greedy else 0)
        tally.answered(began, perf_counter())
