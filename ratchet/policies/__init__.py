"""How a policy acts: spaces and network as a value, parameters to actions in numpy. Nothing here learns."""

from ratchet.policies.acting import Actions, Actor
from ratchet.policies.serving import Decisions, ServedPolicy, safe_action
from ratchet.policies.spec import (
    EnvironmentSpec,
    PolicySpec,
    SpaceSpec,
    UnsupportedSpace,
    flatten_observation,
    parameter_shapes,
    value_shapes,
)

__all__ = [
    "Actions",
    "Actor",
    "Decisions",
    "EnvironmentSpec",
    "PolicySpec",
    "ServedPolicy",
    "SpaceSpec",
    "UnsupportedSpace",
    "flatten_observation",
    "parameter_shapes",
    "safe_action",
    "value_shapes",
]
