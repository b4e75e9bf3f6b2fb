"""What an arm is made of: a checkpoint and the server that answers with it. Hashed, it names the arm."""

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.api.v1alpha1.common import PodFields
from ratchet.api.v1alpha1.policydeployment import Lineage
from ratchet_operator.kinds import digest


class Checkpoint(ApiModel):
    """Where a policy lies, and what it must be.

    Attributes:
        origin: what of the spec's source it was found by; another origin is another wish of the user's.
        digest: `sha256:…` of the checkpoint's manifest, or of policy.json where no checkpoint is around it.
        secret: with the credentials of the bucket; None: the pod's identity.

    """

    origin: str
    digest: str
    uri: str
    endpoint: str | None = None
    region: str = "us-east-1"
    secret: str | None = None
    lineage: Lineage = Lineage()


class Revision(ApiModel):
    """One arm, which never changes.

    Attributes:
        owner: UID of the PolicyDeployment, so that one of the same name shares no pod with the one before.
        policy: what its servers call the policy that they answer with; None until one was asked.
        spaces: what they say that it observes and does, as a digest; None of one that does not say.

    """

    owner: str
    checkpoint: Checkpoint
    image: str
    server: PodFields = PodFields()
    policy: str | None = None
    spaces: str | None = None

    @property
    def name(self) -> str:
        """Hash of all that a server is started with."""
        where = self.checkpoint
        started_with = [self.owner, where.digest, where.uri, where.endpoint, where.region, where.secret]
        return digest([*started_with, self.image, self.server.to_wire()])
