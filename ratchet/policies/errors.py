"""What can be wrong with a stored policy. Every sentence says what, and where it can what to do."""


class ArtifactError(Exception):
    """Any of the below: the policy is not served, and the one before goes on."""


class ArtifactMissing(ArtifactError):  # noqa: N818 - names what happened
    """A file of it is not there."""


class ArtifactUnavailable(ArtifactError):  # noqa: N818 - names what happened
    """Storage did not answer or refused, and there is no copy here."""


class ArtifactDenied(ArtifactUnavailable):
    """Storage answered, and will say no until somebody corrects the bucket, the keys or their rights."""


class ArtifactCorrupt(ArtifactError):  # noqa: N818 - names what happened
    """Bytes are not those that their digest promises, or are no policy at all."""


class ArtifactUnsupported(ArtifactError):  # noqa: N818 - names what happened
    """It is whole, but of a schema or format that this version does not read."""


class ArtifactDisagrees(ArtifactError):  # noqa: N818 - names what happened
    """It answers otherwise than it did where it was made."""
