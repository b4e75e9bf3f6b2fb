"""Weights survive the wire: exactly while small, to the nearest bfloat16 above."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from ratchet.weights import CorruptWeights, decode, encode
from ratchet.weights.codec import EXACT_BYTES, from_bfloat16, to_bfloat16

RNG = np.random.default_rng(0)


def small() -> dict[str, np.ndarray]:
    return {"policy.0.weight": RNG.standard_normal((3, 2), np.float32), "log_std": np.zeros(0, np.float32)}


def test_small_weights_are_exact():
    parameters = small()
    decoded = decode(encode(parameters, 7))
    assert decoded.keys() == parameters.keys()
    for name, value in parameters.items():
        assert decoded[name].dtype == np.float32
        np.testing.assert_array_equal(decoded[name], value)


def test_float32_up_to_the_limit_and_bfloat16_above():
    limit = EXACT_BYTES // 4
    exact, rounded = np.full(limit, 1.001, np.float32), np.full(limit + 1, 1.001, np.float32)
    assert decode(encode({"a": exact}, 1))["a"][0] == exact[0]
    assert decode(encode({"a": rounded}, 1))["a"][0] == 1.0
    assert len(encode({"a": rounded}, 1)) < 0.51 * len(encode({"a": exact}, 1)) + 4096


def test_large_weights_are_plain_bfloat16_safetensors():
    values = RNG.standard_normal((300, 300), np.float32)
    blob = encode({"a": values}, 1)
    length = int.from_bytes(blob[:8], "little")
    assert b'"BF16"' in blob[8 : 8 + length]
    np.testing.assert_allclose(decode(blob)["a"], values, rtol=2**-8)


def test_a_transposed_view_keeps_its_values():
    view = RNG.standard_normal((3, 5), np.float32).T
    np.testing.assert_array_equal(decode(encode({"a": view}, 1))["a"], view)


@given(st.floats(width=32))
def test_bfloat16_is_the_nearest_with_ties_to_even(value: float):
    result = float(from_bfloat16(to_bfloat16(np.array([value], np.float32)))[0])
    if np.isnan(value):
        assert np.isnan(result)
        return
    # Exact arithmetic in float64: the two bfloat16 values around, of which the nearest (even) one is right.
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    below = bits & 0xFFFF0000
    remainder = bits & 0xFFFF
    above = remainder > 0x8000 or (remainder == 0x8000 and bits & 0x10000)
    expected = struct.unpack("<f", struct.pack("<I", below + (0x10000 if above else 0)))[0]
    assert result == expected or (np.isinf(result) and np.isinf(expected))


@pytest.mark.parametrize(
    ("value", "expected"), [(1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (3.4e38, np.inf)]
)
def test_bfloat16_of_ties_and_of_the_largest(value: float, expected: float):
    assert from_bfloat16(to_bfloat16(np.array([value], np.float32)))[0] == np.float32(expected)


@given(st.data())
def test_a_flipped_bit_is_detected_or_harmless(data: st.DataObject):
    parameters = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    blob = bytearray(encode(parameters, 3))
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[bit // 8] ^= 1 << (bit % 8)
    try:
        decoded = decode(bytes(blob))
    except CorruptWeights:
        return
    assert decoded.keys() == parameters.keys()
    for name, value in parameters.items():
        np.testing.assert_array_equal(decoded[name], value)


@given(st.binary(max_size=200))
def test_any_bytes_are_corrupt_weights_and_no_other_error(blob: bytes):
    with pytest.raises(CorruptWeights):
        decode(blob)


def test_safetensors_without_a_checksum_are_refused():
    with pytest.raises(CorruptWeights):
        decode(save(load(encode(small(), 1))))
