"""The errors of the data plane: one family, with a reason that a termination message can carry."""


class DataPlaneError(Exception):
    """Anything that can go wrong between learner and workers."""


class InvalidRedisUrl(DataPlaneError):  # noqa: N818 - a name from the contract
    """REDIS_URL is missing or malformed. The text never holds the URL, for it may hold a password."""


class RedisUnreachable(DataPlaneError):  # noqa: N818 - a name from the contract
    """Redis did not answer for longer than patience lasts, or refused the credentials."""


class DataPlaneLost(DataPlaneError):  # noqa: N818 - a name from the contract
    """Redis no longer holds what this learner wrote: call `begin`, `publish` and `issue` again."""


class Fenced(DataPlaneError):  # noqa: N818 - a name from the contract
    """A newer trainer of the same job has taken over."""


class CorruptFragment(DataPlaneError):  # noqa: N818 - a name from the contract
    """An entry that is not a fragment; `reason` is short and free of data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
