"""How a policy acts: spaces and network as a value, parameters to actions in numpy. Nothing here learns."""

from ratchet.policies.acting import Actions, Actor
from ratchet.policies.spec import (
    EnvironmentSpec,
    PolicySpec,
    SpaceSpec,
    UnsupportedSpace,
    flatten_observation,
    parameter_shapes,
)

__all__ = [
    "Actions",
    "Actor",
    "EnvironmentSpec",
    "PolicySpec",
    "SpaceSpec",
    "UnsupportedSpace",
    "flatten_observation",
    "parameter_shapes",
]
