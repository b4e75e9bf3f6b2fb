"""What every process of Ratchet shares: API, data plane, checkpoints, policies, client and command."""

__version__ = "0.1.0"
