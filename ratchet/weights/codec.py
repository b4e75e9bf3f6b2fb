"""The codec of acting parameters: safetensors with a checksum, float32 while small and bfloat16 above.

A small network loses nothing on the wire by being exact; a large one halves what each worker pulls.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import (
    SafetensorError,
    TensorSpec,
    deserialize,  # pyright: ignore[reportUnknownVariableType]
    serialize,
)

EXACT_BYTES = 256 * 1024


class CorruptWeights(Exception):  # noqa: N818 - a name from the contract
    """Bytes that are no weights, or no longer those that were encoded."""


def encode(parameters: Mapping[str, NDArray[np.float32]], version: int) -> bytes:
    """Safetensors of the parameters, as float32 up to 256 KiB in all, else rounded to bfloat16."""
    exact = {name: np.ascontiguousarray(value, np.float32) for name, value in parameters.items()}
    if sum(value.nbytes for value in exact.values()) <= EXACT_BYTES:
        stored: dict[str, NDArray[Any]] = dict(exact)
        dtype = "float32"
    else:
        stored = {name: to_bfloat16(value) for name, value in exact.items()}
        dtype = "bfloat16"
    # A 0-d array becomes 1-d when it is laid out, hence the shape of the original.
    specs = {
        name: TensorSpec(
            dtype=dtype,
            shape=list(np.shape(parameters[name])),
            data_ptr=value.ctypes.data,
            data_len=value.nbytes,
        )
        for name, value in stored.items()
    }
    crc = _checksum(str(version), {n: (np.shape(parameters[n]), v.tobytes()) for n, v in stored.items()})
    return bytes(serialize(specs, metadata={"version": str(version), "crc": str(crc)}))


def decode(blob: bytes) -> dict[str, NDArray[np.float32]]:
    """The parameters as float32.

    Raises:
        CorruptWeights: the bytes are damaged.

    """
    try:
        tensors = dict(cast("Iterable[tuple[str, dict[str, Any]]]", deserialize(blob)))
        length = int.from_bytes(blob[:8], "little")
        metadata = json.loads(blob[8 : 8 + length])["__metadata__"]
        version, crc = metadata["version"], int(metadata["crc"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise CorruptWeights("weights are not safetensors with version and crc") from None
    content = {name: (tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in tensors.items()}
    if _checksum(version, content) != crc:
        raise CorruptWeights("checksum of the weights does not match")
    parameters: dict[str, NDArray[np.float32]] = {}
    for name, (shape, data) in content.items():
        match tensors[name]["dtype"]:
            case "F32":
                parameters[name] = np.frombuffer(data, "<f4").reshape(shape)
            case "BF16":
                parameters[name] = from_bfloat16(np.frombuffer(data, "<u2")).reshape(shape)
            case other:
                raise CorruptWeights(f"weights of dtype {other}: only F32 and BF16 are known")
    return parameters


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    # Overflow of a finite value carries into the exponent and gives infinity, as rounding should.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The exact float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _checksum(version: str, content: Mapping[str, tuple[tuple[int, ...], bytes]]) -> int:
    crc = zlib.crc32(version.encode())
    for name in sorted(content):
        shape, data = content[name]
        crc = zlib.crc32(data, zlib.crc32(f"{name}{list(shape)}".encode(), crc))
    return crc
