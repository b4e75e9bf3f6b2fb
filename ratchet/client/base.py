"""What the two clients share: where the server is, who asks, and what is done when there is no answer."""

import logging
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from ratchet.client.contract import CLIENT, Action, Fallback, Names, safe_action
from ratchet.client.errors import PolicyError
from ratchet.client.retrying import Budget, Retries

log = logging.getLogger("ratchet.client")

TIMEOUT = 0.1
REWARD_TIMEOUT = 5.0
# An episode returns to the connection it used last, if that is free; the episodes used last are known.
PINS = 4096
# Running episodes whose policy is known; those that were asked for longest ago are forgotten.
EPISODES = 65_536
WARN_SECONDS = 1.0
USUAL = Retries()

C = TypeVar("C")


class Endpoint:
    """A server's address, and the heads of requests to it.

    Args:
        url: such as `http://cartpole.default:8080` or `https://…/a/path`.
        token: of `Authorization: Bearer`.
        tls: for https; by default what the machine trusts. With a client certificate loaded it is mTLS.

    Raises:
        ValueError: the URL is none of a server.

    """

    def __init__(self, url: str, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is no URL of a policy server: write it like http://cartpole:8080")
        if parts.username is not None:
            raise ValueError("the URL holds a user: policy servers take a token, as token=…")
        if token is not None and (not token.isascii() or not token.isprintable()):
            raise ValueError("the token holds characters that no header can")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        host = f"[{self.host}]" if ":" in self.host else self.host
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._base = parts.path.rstrip("/")
        self._common = f" HTTP/1.1\r\nHost: {host}:{self.port}\r\n{authorization}"
        self._rest = f"{self._common}Content-Type: application/json\r\nContent-Length: "
        self._heads: dict[str, bytes] = {}

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def post(self, path: str, body: bytes) -> bytes:
        """A whole request."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = f"POST {self._base}{path}{self._rest}".encode()
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    def get(self, path: str, headers: str) -> bytes:
        """A whole request without a body; each header ends with a line's end."""
        return f"GET {self._base}{path}{self._common}{headers}\r\n".encode()


class Pool(Generic[C]):
    """Connections that wait for a request. Threads may share it: each step is one operation of a dict."""

    def __init__(self) -> None:
        self._idle: dict[C, C] = {}
        self._pins: dict[str, C] = {}

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, episodes: Sequence[str] = ()) -> C | None:
        """A connection that one of the episodes used last, of the first that has one, else any."""
        for episode in episodes:
            pinned = self._pins.get(episode)
            if pinned is not None and self._idle.pop(pinned, None) is not None:
                return pinned
        try:
            return self._idle.popitem()[0]
        except KeyError:
            return None

    def give(self, connection: C, episodes: Sequence[str]) -> None:
        """Takes a connection back, to which these episodes return."""
        pins = self._pins
        for episode in episodes:
            pins.pop(episode, None)
            pins[episode] = connection
            if len(pins) > PINS:
                # Another thread may have changed them meanwhile: the next call forgets one too.
                with suppress(RuntimeError, StopIteration):
                    pins.pop(next(iter(pins)), None)
        self._idle[connection] = connection


class Policies:
    """Which policy each episode runs on: what answered it last and was no fallback. Threads may share it.

    Sent back with the episode's next request it brings the episode to that policy, whichever server the
    request reaches, and whatever share of the episodes a rollout gives it by then.
    """

    def __init__(self) -> None:
        self._digests: OrderedDict[str, str] = OrderedDict()

    def of(self, episode: str | None) -> str | None:
        """Its digest, None for an episode that has none yet."""
        return None if episode is None else self._digests.get(episode)

    def answered(self, episode: str | None, action: Action) -> None:
        """Takes an answer; a fallback says nothing of the next one."""
        if episode is None or action.fallback is not None:
            return
        digests = self._digests
        digests[episode] = action.digest
        # Another thread may have forgotten it meanwhile.
        with suppress(KeyError):
            digests.move_to_end(episode)
            if len(digests) > EPISODES:
                digests.popitem(last=False)

    def ended(self, episodes: Iterable[str | None]) -> None:
        """Forgets episodes: others may have their names."""
        for episode in episodes:
            if episode is not None:
                self._digests.pop(episode, None)


def of_one(episode: str | None) -> Sequence[str]:
    """The episodes of a request for one."""
    return () if episode is None else (episode,)


class ClientBase(Generic[C]):
    """Settings and counters of a client.

    Args:
        url: of the server, or of a PolicyDeployment's Service.
        fallback: a safe action, or a function of observation and mask that gives one, for when no answer
            comes; `act` then raises nothing.
        strict: raise a `PolicyError` instead.
        timeout: seconds for a whole `act`, retries included.
        reward_timeout: seconds for a whole `reward`.
        token: bearer token.
        tls: for https; load a client certificate into it for mTLS.
        retries: how requests are tried again. A decision that is asked for again keeps its id, and a reward
            that arrives twice counts once.
        connections: kept for the next request; an AsyncClient opens no more, and who finds none free waits
            for one within the timeout.

    Raises:
        ValueError: the URL is none, or neither or both of `fallback` and `strict` are given.

    Attributes:
        counts: requests, retries, fallbacks, lost rewards, and errors by their name.

    """

    def __init__(
        self,
        url: str,
        *,
        fallback: Fallback = None,
        strict: bool = False,
        timeout: float = TIMEOUT,
        reward_timeout: float = REWARD_TIMEOUT,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        retries: Retries = USUAL,
        connections: int = 64,
    ) -> None:
        if strict == (fallback is not None):
            raise ValueError(
                "say what to do when no answer comes: fallback= a safe action or a function of observation "
                "and mask that gives one, or strict=True to get the error"
            )
        self.endpoint = Endpoint(url, token, tls)
        self.counts: Counter[str] = Counter()
        self._fallback = fallback
        self._strict = strict
        self._timeout = timeout
        self._reward_timeout = reward_timeout
        self._budget = Budget(retries)
        self.names = Names()
        self._connections = connections
        self._pool: Pool[C] = Pool()
        self._policies = Policies()
        self._warned = -WARN_SECONDS
        self._unsaid = 0

    def instead(self, error: PolicyError, observation: Any, mask: Any, id_: str) -> Action:
        """The safe action in place of an answer; the error itself where it is asked for."""
        self._failed(error, "a safe action was taken instead")
        self.counts["fallbacks"] += 1
        return Action(safe_action(self._fallback, observation, mask), float("nan"), None, "", "", CLIENT, id_)

    def _failed(self, error: PolicyError, what: str) -> None:
        """Counts an error, raises it where it is asked for, else says it, at most once a second."""
        self.counts[type(error).__name__] += 1
        if self._strict:
            raise error
        now = time.monotonic()
        if now - self._warned < WARN_SECONDS:
            self._unsaid += 1
            return
        log.warning(
            "no answer from %s (%s: %s): %s (%d more like this were not said)",
            self.endpoint, type(error).__name__, error, what, self._unsaid,
        )  # fmt: skip
        self._warned, self._unsaid = now, 0
