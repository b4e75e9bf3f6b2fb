"""Fragments survive the wire, and nothing else passes for one."""

import json
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fragments import evaluation, evaluation_with_actions, header, rollout, rollouts
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.experience import CorruptFragment, Fragment, decode, encode
from ratchet.experience.fragment import ROLLOUT_COLUMNS


def same(one: Fragment, other: Fragment) -> bool:
    return (
        one.header == other.header
        and one.columns.keys() == other.columns.keys()
        and all(
            one.columns[name].dtype == other.columns[name].dtype
            and one.columns[name].shape == other.columns[name].shape
            and one.columns[name].tobytes() == other.columns[name].tobytes()
            for name in one.columns
        )
    )


def sealed(entry: dict[bytes, bytes], **changes: Any) -> dict[bytes, bytes]:
    """The entry with other header fields and a checksum that fits them: damage before encoding, not after."""
    values = json.loads(entry[b"h"]) | changes
    values = {name: value for name, value in values.items() if value is not ...}
    del values["crc"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    values["crc"] = zlib.crc32(text, zlib.crc32(entry[b"b"]))
    return {**entry, b"h": json.dumps(values).encode()}


@given(rollouts())
def test_round_trip_of_any_rollout(fragment: Fragment):
    assert same(decode(encode(fragment)), fragment)


def test_round_trip_of_an_evaluation():
    assert same(decode(encode(evaluation())), evaluation())
    assert same(decode(encode(evaluation_with_actions())), evaluation_with_actions())


def test_columns_that_are_strided_views_keep_their_values():
    fragment = rollout()
    strided = np.asfortranarray(fragment.columns["observation"])
    assert not strided.flags.c_contiguous
    encoded = encode(Fragment(fragment.header, {**fragment.columns, "observation": strided}))
    np.testing.assert_array_equal(decode(encoded).columns["observation"], strided)


@settings(max_examples=400)
@given(st.data())
def test_a_flipped_bit_is_detected_or_harmless(data: st.DataObject):
    fragment = rollout()
    entry = encode(fragment)
    field = data.draw(st.sampled_from([b"h", b"b"]))
    bit = data.draw(st.integers(0, 8 * len(entry[field]) - 1))
    damaged = bytearray(entry[field])
    damaged[bit // 8] ^= 1 << (bit % 8)
    try:
        decoded = decode({**entry, field: bytes(damaged)})
    except CorruptFragment:
        return
    assert same(decoded, fragment)


@given(st.dictionaries(st.sampled_from([b"h", b"b", b"x"]), st.binary(max_size=64)))
def test_any_bytes_are_a_corrupt_fragment_and_no_other_error(entry: dict[bytes, bytes]):
    with pytest.raises(CorruptFragment):
        decode(entry)


@pytest.mark.parametrize("text", [b"{", b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b'{"n": NaN}'])
def test_a_header_that_is_no_json_object_is_corrupt(text: bytes):
    with pytest.raises(CorruptFragment, match="header"):
        decode({**encode(rollout()), b"h": text})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": float("nan")}, "header is not JSON"),
        ({"n": 6.0}, "n is not of type int"),
        ({"n": True}, "n is not of type int"),
        ({"n": -1}, "n is negative"),
        ({"n": 5}, "n is not the sum of valid"),
        ({"seconds": -0.5}, "seconds is negative"),
        ({"seconds": "1"}, "seconds is not of type float"),
        ({"sequence": 0}, "sequence starts at 1"),
        ({"worker": ""}, "worker is empty"),
        ({"worker": 5}, "worker is not of type str"),
        ({"kind": "gossip"}, "kind is unknown"),
        ({"schema": 2}, "schema 2"),
        ({"version": ...}, "other fields"),
        ({"surprise": 1}, "other fields"),
    ],
)
def test_a_header_that_lies_is_refused_although_its_checksum_fits(changes: dict[str, Any], reason: str):
    with pytest.raises(CorruptFragment, match=reason):
        decode(sealed(encode(rollout()), **changes))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("reward", None, "missing: .'reward'"),
        ("surprise", np.zeros(1, np.float32), "not expected: .'surprise'"),
        ("reward", np.zeros((3, 2), np.float64), "reward is float64 instead of float32"),
        ("reward", np.zeros((2, 3), np.float32), "reward must be"),
        ("valid", np.ones((3, 2, 1), bool), "valid must be"),
        ("valid", np.array([[1, 1], [1, 0], [1, 1]], bool), "n is not the sum of valid"),
        ("action", np.zeros((3, 1), np.int64), "action must begin"),
        ("observation", np.zeros((3, 2, 5), np.float32), "final_observation must be"),
        ("final_observation", np.zeros((0, 4), np.float32), "final_observation must be"),
        ("final_observation", np.zeros((1, 4), np.float64), "dtype of observation"),
        ("last_observation", np.zeros((3, 4), np.float32), "last_observation must be"),
        ("episode_length", np.zeros(2, np.int32), "episode_return and episode_length"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(column: str, value: Any, reason: str):
    fragment = rollout()
    columns = {**fragment.columns, column: value}
    if value is None:
        del columns[column]
    with pytest.raises(CorruptFragment, match=reason):
        encode(Fragment(fragment.header, columns))


def test_an_end_in_a_step_that_is_not_valid_is_refused():
    fragment = rollout(n=5)
    valid = np.ones((3, 2), bool)
    valid[1, 1] = False
    with pytest.raises(CorruptFragment, match="not valid"):
        encode(Fragment(fragment.header, {**fragment.columns, "valid": valid}))


@pytest.mark.parametrize("name", ["action_sum", "action_squares"])
def test_actions_of_an_evaluation_are_those_of_its_episodes(name: str):
    whole = evaluation_with_actions()
    for wrong in (np.zeros((3, 2)), np.zeros(2), np.zeros((2, 2), np.float32)):
        with pytest.raises(CorruptFragment, match=name):
            encode(Fragment(whole.header, {**whole.columns, name: wrong}))
    del whole.columns[name]
    with pytest.raises(CorruptFragment, match=name):
        encode(whole)


def test_an_evaluation_never_counts_steps():
    with pytest.raises(CorruptFragment, match="no training steps"):
        encode(Fragment(replace(evaluation().header, n=4), evaluation().columns))


def test_decoding_checks_columns_as_encoding_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ratchet.experience.fragment._check_columns", lambda *_: None)
    fragment = rollout()
    entry = encode(Fragment(fragment.header, {**fragment.columns, "reward": np.zeros(1, np.float32)}))
    monkeypatch.undo()
    with pytest.raises(CorruptFragment, match="reward"):
        decode(entry)


def test_the_pool_is_what_comes_before_the_last_slash():
    assert header(worker="spot/nodes/12").pool == "spot/nodes"


def test_every_column_of_the_contract_is_in_a_rollout():
    assert rollout().columns.keys() == ROLLOUT_COLUMNS.keys()
