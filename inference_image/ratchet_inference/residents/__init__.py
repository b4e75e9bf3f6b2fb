"""The policies in memory, and how they get there: fetched, verified, kept on disk, warmed, swapped."""

from ratchet_inference.residents.cache import PolicyCache
from ratchet_inference.residents.residents import Residents

__all__ = ["PolicyCache", "Residents"]
