"""`ratchet rollout`: how a policy takes over, and what a person can say about it."""
