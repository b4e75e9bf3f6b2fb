"""Acting parameters as bytes: what the learner publishes and the workers act by."""

from ratchet.weights.codec import CorruptWeights, decode, encode

__all__ = ["CorruptWeights", "decode", "encode"]
