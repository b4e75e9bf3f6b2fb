"""Why there is no answer. One family, so that `except PolicyError` catches all of it."""


class PolicyError(Exception):
    """Any of the below.

    Attributes:
        passing: the same request may succeed when it is sent again.

    """

    passing = True


class Refused(PolicyError):  # noqa: N818 - names what happened
    """The request itself is at fault: a wrong shape, a number that is NaN, a missing token.

    Attributes:
        status: of the answer; None where it could not even be sent.
        code: the server's word for it, such as `wrong-shape`.

    """

    passing = False

    def __init__(self, message: str, status: int | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Overloaded(PolicyError):  # noqa: N818 - names what happened
    """The server takes no more work now (429 or 503).

    Attributes:
        retry_after: seconds it asks to wait; None where it does not say.

    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Failed(PolicyError):  # noqa: N818 - names what happened
    """The server, or what stands before it, failed: another 5xx."""


class Unreachable(PolicyError):  # noqa: N818 - names what happened
    """No connection, or one that ended before the whole answer came."""


class TimedOut(PolicyError):  # noqa: N818 - names what happened
    """No answer in the time there was."""

    passing = False


class BadAnswer(PolicyError):  # noqa: N818 - names what happened
    """What came is no answer to this request."""
