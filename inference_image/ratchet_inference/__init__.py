"""The policy server: it answers every question with a valid action, and stands on `ratchet.policies`."""
