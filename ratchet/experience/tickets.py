"""A ticket: one piece of work that the learner asks for and any worker may take."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Ticket(BaseModel):
    """One fragment, or one evaluation, wanted.

    Attributes:
        epoch: fencing token of the learner that wrote it; its outcome belongs to that epoch's stream.
        version: of the policy when the ticket was written; the worker takes the newest there is.
        episodes: how many an evaluation plays.
        seed: of an evaluation.
        deterministic: an evaluation takes the most likely actions.
        actions: an evaluation says what was done too.

    """

    # Fields of a newer learner are ignored by an older worker.
    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["rollout", "evaluate"]
    id: int = Field(ge=0)
    epoch: int = Field(ge=1)
    version: int = Field(ge=0)
    episodes: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)
    deterministic: bool | None = None
    actions: bool | None = None

    def to_json(self) -> str:
        """The form in the list of tickets."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def from_json(cls, text: bytes | str) -> "Ticket":
        """Raises pydantic.ValidationError for anything that is not a ticket."""
        return cls.model_validate_json(text)
