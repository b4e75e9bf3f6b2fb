"""The `ratchet` command: what an ML engineer does with jobs, without kubectl."""
