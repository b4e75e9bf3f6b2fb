"""What an algorithm may raise, apart from torch, so that it can be caught before torch is there."""


class Diverged(RuntimeError):  # noqa: N818 - names a state, as its condition does
    """Loss, gradient or parameters are no longer finite. Nothing of the update is to be used."""
