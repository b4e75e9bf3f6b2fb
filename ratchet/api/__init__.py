"""Versions of the ratchet.dev API group."""

GROUP = "ratchet.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
