"""Which checkpoints go: never one that somebody speaks of, nor one that could have been chosen just now."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.checkpoints.retention import Candidate, removable

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(seconds=60)


def made(*written: tuple[int, float | None]) -> list[Candidate]:
    """Checkpoints named by the second in which they were stored."""
    return [Candidate(str(at), BEGIN + timedelta(seconds=at), score) for at, score in written]


@pytest.mark.parametrize(
    ("written", "kept", "gone"),
    [
        ([(0, None), (10, None), (20, None)], [], []),
        ([(0, None), (10, None), (70, None)], [], ["0"]),
        ([(0, 5.0), (10, 1.0), (70, 2.0)], [], []),
        ([(0, 5.0), (5, 1.0), (10, 1.0), (70, 7.0), (129, 1.0)], [], ["5"]),
        ([(0, 5.0), (5, 1.0), (10, 1.0), (70, 7.0), (130, 1.0)], [], ["0", "5", "10"]),
        ([(0, 5.0), (5, 1.0), (10, 1.0), (70, 7.0), (130, 1.0)], ["0"], ["5", "10"]),
        ([(0, 5.0), (10, 5.0), (70, None)], [], ["0"]),
        ([], [], []),
    ],
    ids=[
        "all are young",
        "it stopped being the newest a minute ago",
        "the best stays whatever its age",
        "it was the best until less than a minute ago",
        "it was the best until a minute ago",
        "somebody speaks of it",
        "of two that are as good the newer is the best",
        "there is none",
    ],
)
def test_what_goes(written: list[tuple[int, float | None]], kept: list[str], gone: list[str]):
    assert removable(made(*written), 1, 1, kept, GRACE) == gone


@dataclass
class Write:
    """One more checkpoint; `keeps` is spoken of from then on, counted from the newest."""

    after: int
    score: int | None
    keeps: int | None


def choosable(written: list[Candidate], last: int, best: int) -> set[str]:
    scored = [
        (one.mean_return, at, one.name) for at, one in enumerate(written) if one.mean_return is not None
    ]
    return {one.name for one in written[-last:]} | {name for *_, name in sorted(scored, reverse=True)[:best]}


writes = st.builds(
    Write,
    st.integers(1, 50),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 3),
)


@given(st.lists(writes, min_size=1, max_size=25), st.integers(1, 3), st.integers(1, 3))
def test_what_could_be_chosen_within_the_grace_is_there_and_nothing_else(
    history: list[Write], last: int, best: int
):
    clock, ever, there = 0, list[Candidate](), list[Candidate]()
    spoken: set[str] = set()
    open_until: dict[str, int] = {}  # by name, the last second in which it could be chosen
    for write in history:
        for name in choosable(ever, last, best) if ever else ():
            open_until[name] = clock + write.after
        clock += write.after
        [new] = made((clock, write.score))
        ever.append(new)
        there.append(new)
        open_until |= dict.fromkeys(choosable(ever, last, best), clock)
        if write.keeps is not None and write.keeps < len(there):
            spoken.add(there[-1 - write.keeps].name)
        gone = set(removable(there, last, best, spoken, GRACE))
        there = [one for one in there if one.name not in gone]

        young = {name for name, until in open_until.items() if until > clock - GRACE.total_seconds()}
        assert {one.name for one in there} == young | spoken


def test_what_nobody_speaks_of_any_more_goes_within_the_grace():
    left = made((0, 9.0), (500, 9.0), (505, 9.0))
    assert removable(left, 1, 1, ["0"], GRACE) == []
    assert removable([*left, *made((559, 9.0))], 1, 1, [], GRACE) == []
    assert removable([*left, *made((560, 9.0))], 1, 1, [], GRACE) == ["0"]
