"""Refusals as values: a status, a word for programs, a sentence for people. No I/O here."""

from collections.abc import Sequence

import orjson


class Problem(Exception):  # noqa: N818 - a refusal, which the client may well have expected
    """Why a request is not answered as asked.

    Attributes:
        status: HTTP status, 4xx or 503.
        code: stable word, counted in the statistics.
        message: what was wrong and what to send.
        row: number of the observation at fault in a batch.

    """

    def __init__(self, status: int, code: str, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self._words = message
        self.message = message if row is None else f"observation {row} of the batch: {message}"
        self.row = row

    def of_row(self, rows: Sequence[int]) -> "Problem":
        """The same of a batch of which this one's was a part, with these rows."""
        if self.row is None:
            return self
        return Problem(self.status, self.code, self._words, rows[self.row])

    def body(self) -> bytes:
        """The JSON that a client reads."""
        return orjson.dumps({"error": {"code": self.code, "message": self.message}})


def internal() -> Problem:
    """A 500: the fault is the server's own."""
    return Problem(500, "internal", "the server failed at this request; its log says more")


def bad_request(code: str, message: str, row: int | None = None) -> Problem:
    """A 400: the same request never succeeds."""
    return Problem(400, code, message, row)
