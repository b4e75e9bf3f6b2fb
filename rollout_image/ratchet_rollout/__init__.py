"""The rollout workers of Ratchet."""
