"""Parameters as safetensors: exact, or with the weights of each layer in fewer bits. Nothing here multiplies.

Biases, standard deviations and statistics of observations stay float32: they are few, and cost nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import (
    SafetensorError,
    TensorSpec,
    deserialize,  # pyright: ignore[reportUnknownVariableType]
    serialize,
)

from ratchet.policies.errors import ArtifactCorrupt
from ratchet.weights.codec import from_bfloat16, to_bfloat16

WeightFormat = Literal["float32", "bfloat16", "int8"]
FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
SCALE = ".scale"

Floats = NDArray[np.float32]
_NAMES = {"F32": "<f4", "F64": "<f8", "BF16": "<u2", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2"} | {
    "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8", "BOOL": "?", "F16": "<f2",
}  # fmt: skip


def encode(parameters: Mapping[str, NDArray[Any]], weights: WeightFormat = "float32") -> bytes:
    """Safetensors of float32 parameters, their weights in the format that is asked for."""
    stored: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, value in parameters.items():
        exact = np.array(value, np.float32, order="C")
        if weights == "float32" or not name.endswith(".weight"):
            stored[name] = ("float32", exact)
        elif weights == "bfloat16":
            stored[name] = ("bfloat16", to_bfloat16(exact))
        else:
            quantized, scale = to_int8(exact)
            stored[name] = ("int8", quantized)
            stored[name + SCALE] = ("float32", scale)
    return _serialize(stored)


def decode(blob: bytes, weights: WeightFormat = "float32") -> dict[str, Floats]:
    """The parameters as float32, whatever format their weights have.

    Raises:
        ArtifactCorrupt: the bytes are no safetensors, not of that format, or not all numbers are finite.

    """
    tensors = read_arrays(blob, "policy.safetensors")
    parameters: dict[str, Floats] = {}
    for name, (dtype, value) in tensors.items():
        if name.endswith(SCALE):
            continue
        wanted = {"float32": "F32", "bfloat16": "BF16", "int8": "I8"}[weights]
        wanted = wanted if name.endswith(".weight") else "F32"
        if dtype != wanted:
            raise ArtifactCorrupt(f"{name} in policy.safetensors is {dtype}, not {wanted} as its format says")
        if dtype == "BF16":
            value = from_bfloat16(value.view(np.uint16))
        elif dtype == "I8":
            scale_dtype, scale = tensors.get(name + SCALE, ("nothing", value))
            if scale_dtype != "F32" or scale.shape != value.shape[:1]:
                raise ArtifactCorrupt(f"{name}{SCALE} in policy.safetensors is not one F32 for each output")
            value = from_int8(value.view(np.int8), scale.view(np.float32))
        if not np.isfinite(value).all():
            raise ArtifactCorrupt(f"{name} in policy.safetensors has numbers that are not finite")
        parameters[name] = value.astype(np.float32, copy=False)
    return parameters


def to_int8(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Symmetric, with one scale for each output channel: (outputs, inputs) and (outputs,)."""
    largest = np.abs(weight).max(axis=1, initial=0.0)
    scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(weight / scale[:, None]).clip(-127, 127).astype(np.int8), scale


def from_int8(quantized: NDArray[np.int8], scale: Floats) -> Floats:
    """The float32 weights that `to_int8` stands for."""
    return quantized.astype(np.float32) * scale[:, None]


def write_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Safetensors of arrays as they are."""
    return _serialize(
        {name: (value.dtype.name, np.array(value, order="C")) for name, value in arrays.items()}
    )


def read_arrays(blob: bytes, file: str) -> dict[str, tuple[str, NDArray[Any]]]:
    """Safetensors dtype and array by name, read-only; a bfloat16 array comes as its bits.

    Raises:
        ArtifactCorrupt: the bytes are no safetensors.

    """
    found: dict[str, tuple[str, NDArray[Any]]] = {}
    try:
        for name, tensor in cast("Iterable[tuple[str, dict[str, Any]]]", deserialize(blob)):
            array = np.frombuffer(tensor["data"], _NAMES[tensor["dtype"]]).reshape(tensor["shape"])
            found[name] = (tensor["dtype"], array)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactCorrupt(f"{file} is not safetensors of known dtypes: {error}") from None
    return found


def _serialize(stored: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    specs = {
        name: TensorSpec(
            dtype=dtype, shape=list(value.shape), data_ptr=value.ctypes.data, data_len=value.nbytes
        )
        for name, (dtype, value) in sorted(stored.items())
    }
    return bytes(serialize(specs))
