"""The network of a policy in torch, for those so large that products in few bits are faster than numpy's.

torch is imported here alone, and this module only when it is asked for: `pip install ratchet-rl[torch]`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from ratchet.policies.acting import NORMALIZED_LIMIT, VARIANCE_FLOOR
from ratchet.policies.formats import WeightFormat
from ratchet.policies.networks import Floats, Outputs, checked
from ratchet.policies.spec import PolicySpec, flatten_observation

Layer = Callable[[Tensor], Tensor]
TINY = torch.finfo(torch.float32).tiny


class TorchNetwork:
    """Evaluates with torch on the processor, on one thread: a server scales by processes.

    Args:
        spec: spaces and network.
        parameters: as `checked` wants them.
        weights: what to multiply in. bfloat16 is used throughout; int8 between hidden layers, for what comes
            in and what goes out may be of any scale.

    """

    def __init__(
        self, spec: PolicySpec, parameters: Mapping[str, ArrayLike], weights: WeightFormat = "float32"
    ) -> None:
        torch.set_num_threads(1)
        self.arithmetic = f"torch {weights}"
        own = {name: torch.tensor(value) for name, value in checked(spec, parameters).items()}
        self._space = spec.observation
        self._tanh = spec.activation == "Tanh"
        self._dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
        self._memory = spec.recurrent_size
        self._mean = own.get("observation.mean")
        if self._mean is not None:
            self._scale = (own["observation.variance"] + VARIANCE_FLOOR).sqrt().reciprocal()
        own = {name: value.to(self._dtype) for name, value in own.items()}
        depth = len(spec.hidden)

        def layer(name: str, i: int) -> Layer:
            weight, bias = own[f"{name}.{i}.weight"], own[f"{name}.{i}.bias"]
            if weights == "int8" and 0 < i < depth:
                return _int8(weight, bias)
            return lambda x: functional.linear(x, weight, bias)

        self._hidden = [layer("policy", i) for i in range(depth)]
        self._head = layer("policy", depth)
        if self._memory:
            names = ("input.weight", "hidden.weight", "input.bias", "hidden.bias")
            self._gates = [own[f"recurrent.{name}"] for name in names]
        layers = range(1 if self._memory else depth + 1)
        self._value = [layer("value", i) for i in layers] if "value.0.weight" in own else []

    @property
    def has_value(self) -> bool:
        """There is a network for it among the parameters."""
        return bool(self._value)

    def __call__(self, observations: NDArray[Any], states: Floats | None) -> Outputs:
        """Evaluates as `networks.Network` says."""
        with torch.inference_mode():
            x = torch.tensor(flatten_observation(self._space, observations))
            if self._mean is not None:
                x = ((x - self._mean) * self._scale).clamp(-NORMALIZED_LIMIT, NORMALIZED_LIMIT)
            seen = x.to(self._dtype)
            hidden = self._through(self._hidden, seen)
            state = None
            if self._memory:
                state = hidden = seen = self._remember(hidden, states)
            outputs = self._head(hidden)
            value = None
            if self._value:
                value = self._value[-1](self._through(self._value[:-1], seen))[:, 0]
            return Outputs(_numpy(outputs), *(None if t is None else _numpy(t) for t in (value, state)))

    def _through(self, layers: list[Layer], x: Tensor) -> Tensor:
        for layer in layers:
            x = _tanh(layer(x)) if self._tanh else layer(x).relu_()
        return x

    def _remember(self, x: Tensor, states: Floats | None) -> Tensor:
        past = x.new_zeros(len(x), self._memory)
        if states is not None:
            past = torch.tensor(states, dtype=self._dtype)
        return torch.gru_cell(x, past, *self._gates)


def _int8(weight: Tensor, bias: Tensor) -> Layer:
    """A layer that multiplies in 8 bits: one scale for each output, and one for each row of inputs.

    torch's own dynamic layer has one scale for all rows, so that each row's answer hangs on its batch.
    """
    scale = (weight.abs().amax(1) / 127).clamp_min(TINY)
    quantized = (weight / scale[:, None]).round().to(torch.int8).t().contiguous()

    def apply(x: Tensor) -> Tensor:
        step = (x.abs().amax(1, keepdim=True) / 127).clamp_min(TINY)
        product: Tensor = torch.ops.aten._int_mm((x / step).round().to(torch.int8), quantized)
        return product.float().mul_(step).mul_(scale).add_(bias)

    return apply


def _tanh(x: Tensor) -> Tensor:
    """With numpy, whose own is several times as fast as torch's."""
    array = _numpy(x)
    np.tanh(array, array)
    return torch.as_tensor(array, dtype=x.dtype)


def _numpy(tensor: Tensor) -> Floats:
    return tensor.float().numpy()
