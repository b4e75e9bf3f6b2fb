"""A kind cluster on this machine, with the images and the object store that Ratchet's examples and tests need."""
