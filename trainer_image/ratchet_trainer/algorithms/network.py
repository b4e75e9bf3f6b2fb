"""Networks whose gradients are written out, and the optimizer that moves them.

For the small networks of control tasks the arithmetic is cheaper than autograd's bookkeeping around it, and
than that of one optimizer step per tensor: so all parameters are views of one vector. Tests compare all of it
with autograd, `torch.optim.Adam` and `clip_grad_norm_`; `benchmarks/learner_speed.py` prints what it saves.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ratchet.policies import PolicySpec, parameter_shapes, value_shapes

# As Kingma and Ba 2014, arXiv:1412.6980, but for epsilon: [37, 3], which `ppo` explains.
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-5


class Parameters:
    """All parameters in one vector and all gradients in another; by name they are views."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        total = sum(math.prod(shape) for shape in shapes.values())
        self.vector = torch.zeros(total, device=device)
        self.gradient_vector = torch.zeros(total, device=device)
        self.value: dict[str, Tensor] = {}
        self.gradient: dict[str, Tensor] = {}
        first = 0
        for name, shape in shapes.items():
            last = first + math.prod(shape)
            self.value[name] = self.vector[first:last].view(shape)
            self.gradient[name] = self.gradient_vector[first:last].view(shape)
            first = last

    def clip_gradient(self, longest: float) -> Tensor:
        """Scales the gradient to at most this norm, over all parameters [37, 11]; gives the norm before."""
        norm = torch.dot(self.gradient_vector, self.gradient_vector).sqrt()
        self.gradient_vector.mul_(torch.clamp(longest / (norm + 1e-6), max=1.0))
        return norm


class Adam:
    """Moves all parameters at once, as `torch.optim.Adam` does.

    Attributes:
        first: running mean of the gradient.
        second: running mean of its square.
        steps: made so far.

    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.first = torch.zeros_like(parameters.vector)
        self.second = torch.zeros_like(parameters.vector)
        self.steps = 0

    def step(self, learning_rate: float) -> None:
        """One step along the gradient that `Parameters` hold."""
        gradient = self._parameters.gradient_vector
        self.steps += 1
        self.first.lerp_(gradient, 1.0 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
        deviation = self.second.sqrt().div_(math.sqrt(1.0 - BETA2**self.steps)).add_(EPSILON)
        size = learning_rate / (1.0 - BETA1**self.steps)
        self._parameters.vector.addcdiv_(self.first, deviation, value=-size)


class MLP:
    """A multilayer perceptron with its own backward pass. `backward` belongs to the `forward` before it."""

    def __init__(self, parameters: Parameters, name: str, layers: int, spec: PolicySpec) -> None:
        self._weights = [parameters.value[f"{name}.{i}.weight"] for i in range(layers)]
        self._biases = [parameters.value[f"{name}.{i}.bias"] for i in range(layers)]
        self._weight_gradients = [parameters.gradient[f"{name}.{i}.weight"] for i in range(layers)]
        self._bias_gradients = [parameters.gradient[f"{name}.{i}.bias"] for i in range(layers)]
        self._tanh = spec.activation == "Tanh"
        self._inputs: list[Tensor] = []

    def initialize(self, head_gain: float, generator: torch.Generator) -> None:
        """Draws orthogonal weights, of gain sqrt(2) but for the last layer [37, 2]; biases stay."""
        for i, weight in enumerate(self._weights):
            gain = head_gain if i == len(self._weights) - 1 else math.sqrt(2.0)
            drawn = torch.empty(weight.shape)
            torch.nn.init.orthogonal_(drawn, gain, generator)
            weight.copy_(drawn)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        self._inputs = [x]
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            x = torch.addmm(bias, x, weight.t())
            x = _tanh_(x) if self._tanh else x.relu_()
            self._inputs.append(x)
        return torch.addmm(self._biases[-1], x, self._weights[-1].t())

    def backward(self, gradient: Tensor) -> None:
        """Sets the gradients of all parameters, from that of the outputs (B, outputs)."""
        for i in range(len(self._weights) - 1, -1, -1):
            x = self._inputs[i]
            torch.mm(gradient.t(), x, out=self._weight_gradients[i])
            torch.sum(gradient, 0, out=self._bias_gradients[i])
            if i:
                gradient = gradient @ self._weights[i]
                # tanh' = 1 - tanh^2
                gradient = (
                    torch.addcmul(gradient, gradient * x, x, value=-1.0) if self._tanh else gradient * (x > 0)
                )


def _tanh_(x: Tensor) -> Tensor:
    """In place. On a CPU numpy's is five times as fast as torch's, and it is the one that actors use."""
    if x.is_cpu:
        array = x.numpy()
        np.tanh(array, out=array)
        return x
    return x.tanh_()


def learner_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Of the policy, as actors know them, and of a separate network for the value [37, 13]."""
    acting = parameter_shapes(spec).items()
    return {name: shape for name, shape in acting if not name.startswith("observation.")} | value_shapes(spec)
