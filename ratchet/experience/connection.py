"""How a process reaches Redis. The URL may hold a password, so it never enters a log or an exception."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ratchet.experience.errors import InvalidRedisUrl

URL_FILE = "RATCHET_REDIS_URL_FILE"
URL = "REDIS_URL"


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What is needed to connect; times in seconds.

    Attributes:
        socket_timeout: longer than any blocking command of the channels may block.

    """

    url: str = field(repr=False)
    connect_timeout: float = 5.0
    socket_timeout: float = 15.0
    health_check_interval: float = 30.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ConnectionSettings":
        """Reads the file that RATCHET_REDIS_URL_FILE names (a mounted Secret), or else REDIS_URL.

        Raises:
            InvalidRedisUrl: neither gives a Redis URL.

        """
        path = environment.get(URL_FILE)
        if path:
            try:
                url = Path(path).read_text().strip()
            except OSError as error:
                reason = f"the file that {URL_FILE} names can't be read: {error.strerror}"
                raise InvalidRedisUrl(reason) from None
        else:
            url = environment.get(URL, "").strip()
        if not url:
            raise InvalidRedisUrl(f"no Redis URL: set {URL_FILE} to the file of a Secret, or set {URL}")
        return cls(url)


def connect(settings: ConnectionSettings) -> Redis:
    """A client that connects on first use and never retries by itself (`ratchet.experience.retry` does).

    Raises:
        InvalidRedisUrl: the URL is malformed.

    """
    try:
        parts = urlsplit(settings.url)
        over_tcp = parts.scheme in ("redis", "rediss")
        database = parts.path.strip("/")
        # redis-py takes a path that is no number for database 0.
        if over_tcp and (not parts.hostname or parts.port == 0 or not (database or "0").isdigit()):
            raise ValueError
        # A Unix socket knows neither.
        tcp = {"socket_connect_timeout": settings.connect_timeout, "socket_keepalive": True}
        return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            settings.url,
            protocol=2,
            decode_responses=False,
            socket_timeout=settings.socket_timeout,
            health_check_interval=settings.health_check_interval,
            retry=Retry(NoBackoff(), 0),
            **(tcp if over_tcp else {}),
        )
    except (ValueError, TypeError):
        raise InvalidRedisUrl(
            f"{URL} is not a Redis URL: write redis://user:password@host:6379/0, or rediss:// for TLS"
        ) from None
