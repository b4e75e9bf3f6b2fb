"""What can go wrong with stored checkpoints. No message holds a credential."""


class CheckpointError(Exception):
    """Any of the below."""


class StorageDenied(CheckpointError):  # noqa: N818 - names what happened
    """S3 answered, and will answer the same next time: wrong credentials, missing bucket, no right."""


class StorageUnavailable(CheckpointError):  # noqa: N818 - names what happened
    """S3 did not answer, or not now: worth trying again later."""


class Superseded(CheckpointError):  # noqa: N818 - names what happened
    """Another trainer has claimed this epoch or a higher one: this one must write no checkpoint."""


class CheckpointsUnreadable(CheckpointError):  # noqa: N818 - names what happened
    """There are checkpoints and none of them is whole."""
