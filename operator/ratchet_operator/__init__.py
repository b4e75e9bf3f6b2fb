"""The control plane of Ratchet: events in, one pure step per object, writes out."""
