"""What a policy is, as values: spaces, network, names and shapes of its parameters.

The JSON of these models is stored in `policy.json` and in the data plane, so fields are only ever added.
Neither Gymnasium nor torch belongs here: the conversion from a Gymnasium space is the rollout worker's.
"""

from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

SpaceKind = Literal["Box", "Discrete", "MultiDiscrete", "MultiBinary"]
Bound = float | tuple[float, ...]


class UnsupportedSpace(ValueError):  # noqa: N818 - a name from the contract
    """A space that no policy of Ratchet can act in; the message says what to do instead."""

    def __init__(self, role: str, found: str) -> None:
        super().__init__(
            f"{role} space {found} is not supported: Ratchet acts in Box, Discrete, MultiDiscrete and "
            "MultiBinary spaces, with floating-point Box actions. Wrap the environment, for a Dict or Tuple "
            "observation with gymnasium.wrappers.FlattenObservation, and name the function that returns the "
            "wrapped environment in environment.entryPoint"
        )


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class SpaceSpec(_Value):
    """A Gymnasium space as data.

    Attributes:
        shape: of one element; () for Discrete.
        dtype: numpy name of one element's dtype, as the environment gives it.
        n: number of values of a Discrete space.
        nvec: number of values of each component of a MultiDiscrete space, flattened in C order.
        start: smallest value, a tuple (flattened like `nvec`) when components differ.
        low: bounds of a Box, one number when they are all equal, else flattened in C order.
        high: as `low`.

    """

    kind: SpaceKind
    shape: tuple[Annotated[int, Field(ge=0)], ...] = ()
    dtype: str = "float32"
    n: int | None = Field(default=None, ge=1)
    nvec: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    start: int | tuple[int, ...] = 0
    low: Bound | None = None
    high: Bound | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            kind = np.dtype(self.dtype).kind
        except TypeError as error:
            raise ValueError(f"{self.dtype} is no dtype of numpy") from error
        if kind not in "biuf":
            raise ValueError(f"{self.dtype} is no dtype of real numbers")
        size = prod(self.shape)
        if (self.n is not None) != (self.kind == "Discrete"):
            raise ValueError("n belongs to a Discrete space, and to no other")
        if self.kind == "Discrete" and self.shape != ():
            raise ValueError("a Discrete space has the shape ()")
        if (self.nvec is not None) != (self.kind == "MultiDiscrete"):
            raise ValueError("nvec belongs to a MultiDiscrete space, and to no other")
        for name in ("nvec", "start", "low", "high"):
            value: int | Bound | None = getattr(self, name)
            if isinstance(value, tuple) and len(value) != size:
                raise ValueError(f"{name} must have one entry for each of the {size} components")
        return self

    @property
    def size(self) -> int:
        """Number of components of one element; 1 for Discrete."""
        return prod(self.shape)

    @property
    def features(self) -> int:
        """Length of the vector that one observation is flattened to."""
        if self.n is not None:
            return self.n
        return sum(self.nvec) if self.nvec is not None else self.size

    @property
    def outputs(self) -> int:
        """Outputs of the network for actions in this space: logits, or means of a Box."""
        return self.features


class EnvironmentSpec(_Value):
    """What a learner must know of an environment that only workers have."""

    observation: SpaceSpec
    action: SpaceSpec
    reward_threshold: float | None = None


class PolicySpec(_Value):
    """A multilayer perceptron from flattened observations to the parameters of an action distribution.

    Attributes:
        recurrent_size: units of a GRU between the hidden layers and the output layer; 0 for none.

    """

    observation: SpaceSpec
    action: SpaceSpec
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(64, 64), min_length=1)
    activation: Literal["Tanh", "ReLU"] = "Tanh"
    normalizes_observations: bool = False
    recurrent_size: int = Field(default=0, ge=0)


def parameter_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the acting parameters, in the order in which they are stored.

    Those of a GRU have the layout of `torch.nn.GRUCell`: gates reset, update, new.
    """
    features, memory = spec.observation.features, spec.recurrent_size
    shapes = _perceptron("policy", (features, *spec.hidden))
    if memory:
        for name, inputs in (("input", spec.hidden[-1]), ("hidden", memory)):
            shapes[f"recurrent.{name}.weight"] = (3 * memory, inputs)
            shapes[f"recurrent.{name}.bias"] = (3 * memory,)
    head = f"policy.{len(spec.hidden)}"
    shapes[f"{head}.weight"] = (spec.action.outputs, memory or spec.hidden[-1])
    shapes[f"{head}.bias"] = (spec.action.outputs,)
    if spec.action.kind == "Box":
        shapes["log_std"] = (spec.action.outputs,)
    if spec.normalizes_observations:
        shapes["observation.mean"] = shapes["observation.variance"] = (features,)
    return shapes


def value_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Of the network that estimates the value of an observation.

    It stands apart from the policy's, with as many hidden layers, but reads a recurrent policy's new state.
    """
    if spec.recurrent_size:
        return _perceptron("value", (spec.recurrent_size, 1))
    return _perceptron("value", (spec.observation.features, *spec.hidden, 1))


def _perceptron(name: str, sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(len(sizes) - 1):
        shapes[f"{name}.{i}.weight"] = (sizes[i + 1], sizes[i])
        shapes[f"{name}.{i}.bias"] = (sizes[i + 1],)
    return shapes


def flatten_observation(space: SpaceSpec, observation: NDArray[Any]) -> NDArray[np.float32]:
    """Observations as the vectors a network reads.

    Args:
        space: of one observation.
        observation: (..., *space.shape), with any leading axes.

    Returns:
        (..., space.features) float32. Discrete and MultiDiscrete become one-hot; a float32 Box is a view.

    """
    leading = observation.shape[: observation.ndim - len(space.shape)]
    if space.kind in ("Box", "MultiBinary"):
        return observation.reshape(*leading, space.size).astype(np.float32, copy=False)
    counts = np.array([space.n] if space.nvec is None else space.nvec, np.int64)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)[:-1]])
    column = observation.reshape(-1, len(counts)).astype(np.int64) - space.start + first
    rows = column.shape[0]
    flat = np.zeros((rows, space.features), np.float32)
    flat[np.arange(rows)[:, None], column] = 1.0
    return flat.reshape(*leading, space.features)
