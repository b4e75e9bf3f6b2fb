"""A kind cluster on this machine, with the images and the object store that examples and tests need."""
