"""The control plane of Ratchet."""
