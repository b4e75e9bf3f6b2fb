"""Actions from a policy server, with a safe one when there is no answer. Needs nothing but Python.

with Client("http://cartpole:8080", fallback=0) as client:
    action = client.act(observation, episode=name)
"""

from ratchet.client.asynchronous import AsyncClient
from ratchet.client.blocking import Client
from ratchet.client.contract import Action
from ratchet.client.episodes import AsyncEpisode, Episode
from ratchet.client.errors import (
    BadAnswer,
    Failed,
    Overloaded,
    PolicyError,
    Refused,
    TimedOut,
    Unreachable,
)
from ratchet.client.retrying import Retries

__all__ = [
    "Action",
    "AsyncClient",
    "AsyncEpisode",
    "BadAnswer",
    "Client",
    "Episode",
    "Failed",
    "Overloaded",
    "PolicyError",
    "Refused",
    "Retries",
    "TimedOut",
    "Unreachable",
]
