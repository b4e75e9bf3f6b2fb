"""The network of a policy in torch, for those so large that its products are faster than numpy's.

torch is imported here alone, and this module only when it is asked for: `pip install ratchet-rl[torch]`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from ratchet.policies.acting import NORMALIZED_LIMIT, VARIANCE_FLOOR
from ratchet.policies.networks import Floats, Outputs, checked
from ratchet.policies.spec import PolicySpec, flatten_observation


class TorchNetwork:
    """Evaluates with torch on the processor, on one thread: a server scales by processes.

    Args:
        spec: spaces and network.
        parameters: as `checked` wants them.
        half: multiply in bfloat16, which halves what is read from memory.

    """

    def __init__(self, spec: PolicySpec, parameters: Mapping[str, ArrayLike], *, half: bool = False) -> None:
        torch.set_num_threads(1)
        own = {name: torch.tensor(value) for name, value in checked(spec, parameters).items()}
        self._space = spec.observation
        self._tanh = spec.activation == "Tanh"
        self._dtype = torch.bfloat16 if half else torch.float32
        self._memory = spec.recurrent_size
        self._mean = own.get("observation.mean")
        if self._mean is not None:
            self._scale = (own["observation.variance"] + VARIANCE_FLOOR).sqrt().reciprocal()
        own = {name: value.to(self._dtype) for name, value in own.items()}
        depth = len(spec.hidden)
        self._hidden = [_layer(own, f"policy.{i}") for i in range(depth)]
        self._head = _layer(own, f"policy.{depth}")
        self._gates = [_layer(own, f"recurrent.{name}") for name in ("input", "hidden") if self._memory]
        layers = range(1 if self._memory else depth + 1)
        self._value = [_layer(own, f"value.{i}") for i in layers] if "value.0.weight" in own else []

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
            hidden = self._perceptron(self._hidden, seen)
            state = None
            if self._memory:
                state = self._remember(hidden, states)
                hidden = seen = state
            outputs = functional.linear(hidden, *self._head)
            value = None
            if self._value:
                value = functional.linear(self._perceptron(self._value[:-1], seen), *self._value[-1])[:, 0]
            return Outputs(_numpy(outputs), *(None if t is None else _numpy(t) for t in (value, state)))

    def _perceptron(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        for weight, bias in layers:
            x = functional.linear(x, weight, bias)
            x = x.tanh_() if self._tanh else x.relu_()
        return x

    def _remember(self, x: Tensor, states: Floats | None) -> Tensor:
        past = x.new_zeros(len(x), self._memory)
        if states is not None:
            past = torch.tensor(states, dtype=self._dtype)
        (input_weight, input_bias), (hidden_weight, hidden_bias) = self._gates
        return torch.gru_cell(x, past, input_weight, hidden_weight, input_bias, hidden_bias)


def _layer(own: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return own[f"{name}.weight"], own[f"{name}.bias"]


def _numpy(tensor: Tensor) -> Floats:
    return tensor.float().numpy()
