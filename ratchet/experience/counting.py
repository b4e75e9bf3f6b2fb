"""Counting every fragment once, although delivery is at least once."""

from typing import Any, cast

# More incarnations than workers a pool may have, with room for their restarts between two trims.
REMEMBERED_INCARNATIONS = 20_000


class HighWaterMarks:
    """The highest sequence accepted from each worker incarnation.

    A worker sends sequence k+1 only once k has arrived, so anything at or below the mark is a copy that a
    retry made. A gap is no error: what is missing was discarded by its worker or lost with Redis.

    Beyond `REMEMBERED_INCARNATIONS` the longest silent incarnation is forgotten. A copy follows its original
    within one retry, in the stream of one epoch, so none is then still to come.
    """

    def __init__(self, marks: dict[str, int] | None = None) -> None:
        self._marks = dict(marks or {})

    def accept(self, incarnation: str, sequence: int) -> bool:
        """Whether this fragment counts; if it does, no later one with this or a lower sequence will."""
        mark = self._marks.pop(incarnation, 0)
        self._marks[incarnation] = max(mark, sequence)
        if len(self._marks) > REMEMBERED_INCARNATIONS:
            del self._marks[next(iter(self._marks))]
        return sequence > mark

    def to_json(self) -> dict[str, int]:
        """Marks by incarnation, longest silent first."""
        return dict(self._marks)

    @classmethod
    def from_json(cls, value: Any) -> "HighWaterMarks":
        """Reads what `to_json` gave.

        Raises:
            ValueError: the value is not a map of incarnations to sequences.

        """
        if not isinstance(value, dict):
            raise ValueError("high-water marks must be a map of incarnation to sequence")
        marks: dict[str, int] = {}
        for incarnation, sequence in cast("dict[Any, Any]", value).items():
            if not isinstance(incarnation, str) or type(sequence) is not int or sequence < 0:
                raise ValueError("high-water marks must be a map of incarnation to sequence")
            marks[incarnation] = sequence
        return cls(marks)
