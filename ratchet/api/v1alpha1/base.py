"""The base of every API model, and the rules that the API server and Python both enforce.

A rule is written once with two faces: a CEL expression for the CRD and a Python predicate for
`ratchet validate`. A contract test holds that both refuse the same objects with the same sentence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint over one object.

    Attributes:
        cel: CEL over `self`, evaluated by the API server.
        message: what is wrong and what to write instead.
        holds: the same predicate over the pydantic model.

    """

    cel: str
    message: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Transition:
    """A constraint over a change, CEL over `self` and `oldSelf`; it can only be tried on an update."""

    cel: str
    message: str


class RulesBrokenError(ValueError):
    """One object breaks one or more of its model's rules."""

    def __init__(self, messages: tuple[str, ...]) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


class ApiModel(BaseModel):
    """An immutable API object: camelCase on the wire, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    rules: ClassVar[tuple[Rule, ...]] = ()
    transitions: ClassVar[tuple[Transition, ...]] = ()

    @model_validator(mode="after")
    def _enforce_rules(self) -> Self:
        broken = tuple(rule.message for rule in self.rules if not rule.holds(self))
        if broken:
            raise RulesBrokenError(broken)
        return self

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form that is written to Kubernetes: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


Name = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
Duration = Annotated[
    str,
    Field(
        min_length=2,
        max_length=32,
        pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
        description="A duration such as 90s, 15m or 2h30m.",
    ),
]
FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


def seconds(duration: str) -> int:
    """Seconds of a `Duration` such as ``1h30m``."""
    units = {"h": 3600, "m": 60, "s": 1}
    total, digits = 0, ""
    for char in duration:
        if char in units:
            total, digits = total + int(digits) * units[char], ""
        else:
            digits += char
    return total
