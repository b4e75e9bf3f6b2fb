"""From a Gymnasium space to the space of a policy."""

from typing import Any, Literal, cast

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from ratchet.policies import SpaceSpec, UnsupportedSpace
from ratchet.policies.spec import Bound

Role = Literal["observation", "action"]


def describe(space: Space[Any], role: Role) -> SpaceSpec:
    """The space as data.

    Raises:
        UnsupportedSpace: no policy of Ratchet reads or acts in it.

    """
    dtype = str(space.dtype)
    match space:
        case spaces.Discrete():
            return SpaceSpec(kind="Discrete", dtype=dtype, n=int(space.n), start=int(space.start))
        case spaces.MultiDiscrete():
            return SpaceSpec(
                kind="MultiDiscrete",
                shape=space.shape,
                dtype=dtype,
                nvec=tuple(int(n) for n in space.nvec.ravel()),
                start=tuple(int(first) for first in space.start.ravel()) if space.start.any() else 0,
            )
        case spaces.MultiBinary():
            return SpaceSpec(kind="MultiBinary", shape=space.shape, dtype=dtype)
        case spaces.Box() if role == "observation" or np.issubdtype(space.dtype, np.floating):
            return SpaceSpec(
                kind="Box", shape=space.shape, dtype=dtype, low=_bound(space.low), high=_bound(space.high)
            )
        case _:
            raise UnsupportedSpace(role, f"{type(cast('object', space)).__name__} of {dtype}")


def _bound(values: NDArray[Any]) -> Bound:
    flat = [float(value) for value in values.ravel()]
    return flat[0] if len(set(flat)) == 1 else tuple(flat)
