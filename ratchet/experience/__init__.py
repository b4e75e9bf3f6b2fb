"""Fragments of experience, and the tickets and stream that carry them through Redis.

The contract is docs/data-plane.md. How experience is made belongs to the rollout worker, what is learned
from it to the trainer.
"""

from ratchet.experience.channel import (
    Entry,
    LearnerChannel,
    Weights,
    WorkerChannel,
)
from ratchet.experience.connection import ConnectionSettings, connect
from ratchet.experience.counting import HighWaterMarks
from ratchet.experience.errors import (
    CorruptFragment,
    DataPlaneError,
    DataPlaneLost,
    Fenced,
    InvalidRedisUrl,
    RedisUnreachable,
)
from ratchet.experience.fragment import Fragment, Header, decode, encode
from ratchet.experience.retry import Patience
from ratchet.experience.tickets import Ticket

__all__ = [
    "ConnectionSettings",
    "CorruptFragment",
    "DataPlaneError",
    "DataPlaneLost",
    "Entry",
    "Fenced",
    "Fragment",
    "Header",
    "HighWaterMarks",
    "InvalidRedisUrl",
    "LearnerChannel",
    "Patience",
    "RedisUnreachable",
    "Ticket",
    "Weights",
    "WorkerChannel",
    "connect",
    "decode",
    "encode",
]
