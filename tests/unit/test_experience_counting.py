"""Each fragment counts once, however often it arrives."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.experience import HighWaterMarks
from ratchet.experience.counting import REMEMBERED_INCARNATIONS


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Any interleaving of workers that send 1, 2, … in order, with copies anywhere after their original."""
    streams: dict[str, list[int]] = {}
    for worker in range(draw(st.integers(1, 4))):
        sent: list[int] = []
        for sequence in range(1, draw(st.integers(0, 6)) + 1):
            sent.append(sequence)
            sent += draw(st.lists(st.sampled_from(sent), max_size=3))
        streams[f"w{worker}"] = sent
    turns = draw(st.permutations([worker for worker, sent in streams.items() for _ in sent]))
    return [(worker, streams[worker].pop(0)) for worker in turns]


@given(deliveries(), st.data())
def test_counts_each_once_across_a_checkpoint(arrived: list[tuple[str, int]], data: st.DataObject):
    marks = HighWaterMarks()
    saved_at = data.draw(st.integers(0, len(arrived)))
    counted: list[tuple[str, int]] = []
    for i, (incarnation, sequence) in enumerate(arrived):
        if i == saved_at:
            marks = HighWaterMarks.from_json(json.loads(json.dumps(marks.to_json())))
        if marks.accept(incarnation, sequence):
            counted.append((incarnation, sequence))
    assert sorted(counted) == sorted(set(arrived))


def test_a_gap_is_accepted_and_what_it_skipped_is_a_copy():
    marks = HighWaterMarks()
    assert marks.accept("a", 5)
    assert not marks.accept("a", 3)
    assert marks.accept("a", 6)


def test_a_restarted_worker_counts_from_one_again():
    marks = HighWaterMarks()
    assert marks.accept("before", 1)
    assert marks.accept("after", 1)


def test_a_copy_does_not_lower_the_mark():
    marks = HighWaterMarks({"a": 5})
    marks.accept("a", 2)
    assert marks.to_json() == {"a": 5}


def test_only_the_longest_silent_incarnation_is_forgotten():
    marks = HighWaterMarks({f"w{i}": 1 for i in range(REMEMBERED_INCARNATIONS)})
    marks.accept("w0", 2)
    marks.accept("new", 1)
    assert "w1" not in marks.to_json()
    assert marks.to_json()["w0"] == 2
    assert len(marks.to_json()) == REMEMBERED_INCARNATIONS


@pytest.mark.parametrize("value", [None, [], {"a": "1"}, {"a": -1}, {"a": True}, {1: 1}])
def test_marks_of_a_wrong_form_are_refused(value: object):
    with pytest.raises(ValueError, match="map of incarnation"):
        HighWaterMarks.from_json(value)
