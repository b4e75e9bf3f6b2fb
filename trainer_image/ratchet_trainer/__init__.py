"""The learner of Ratchet."""
