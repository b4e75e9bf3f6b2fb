"""CartPole policies made by hand: good ones, and one for each way in which a policy can be bad.

They are artifacts like any that a trainer exports: nothing in the server knows them, and all but `another
action space` pass every check that comes before live traffic. Each is stored as a checkpoint of its own.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import CheckpointStore, Manifest
from ratchet.checkpoints.manifest import Lineage, checkpoint_name
from ratchet.policies import PolicySpec, SpaceSpec, parameter_shapes
from ratchet.policies.artifact import Artifact, PolicyLineage, make
from ratchet.policies.formats import WeightFormat

Floats = NDArray[np.float32]

# As Gymnasium gives them.
_LIMITS = (4.800000190734863, float("inf"), 0.41887903213500977, float("inf"))
OBSERVATION = SpaceSpec(
    kind="Box", shape=(4,), low=tuple(-limit for limit in _LIMITS), high=_LIMITS, dtype="float32"
)
LEFT_OR_RIGHT = SpaceSpec(kind="Discrete", n=2, dtype="int64")
# Cart's position and speed, pole's angle and speed: what is weighed to decide which way to push.
BALANCES = (0.5, 1.0, 10.0, 5.0)  # 500 of 500 steps, also from far off
STANDS = (0.0, 0.0, 10.0, 5.0)  # keeps the pole up and lets the cart run away: about 420 of 500
GUESSES = (0.0, 0.0, 0.0, 0.0)  # tosses a coin: about 22
DROPS = (0.0, 0.0, -10.0, -5.0)  # pushes the wrong way: 9
# The pole of a good policy turns faster than this, in rad/s, in about one of twenty steps.
TURNS_FAST = 0.28
MANIFESTS = "manifests"


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint in a bucket, and what its server will call its policy.

    Attributes:
        uri: of the manifest.
        digest: of the manifest, `sha256:…`, as a source names it.
        policy: of the policy, in hex, as the server answers it.

    """

    uri: str
    digest: str
    policy: str


def balancing(weights: tuple[float, ...] = BALANCES, seed: int = 0) -> Artifact:
    """A policy that pushes to where the weighed sum points; `seed` only makes its digest another."""
    return _artifact(_spec(4), _steering(_spec(4), weights, seed))


def slow(width: int = 4096) -> Artifact:
    """Balances as well as any, with width² multiplications for each decision that change nothing."""
    spec = _spec(width, width)
    return _artifact(spec, _steering(spec, BALANCES), "int8")


def not_a_number() -> Artifact:
    """Balances, until the pole turns fast: then infinity less infinity is what its last layer adds up."""
    spec = _spec(4, 4)
    parameters = _steering(spec, BALANCES)
    parameters["policy.0.weight"][2, 3] = 1e20
    parameters["policy.0.bias"][2] = -1e20 * TURNS_FAST
    parameters["policy.1.weight"][2, 2] = parameters["policy.1.weight"][3, 2] = 1e20
    parameters["policy.2.weight"][:, 2:] = (1.0, -1.0)
    return _artifact(spec, parameters)


def too_large(width: int = 7168) -> Artifact:
    """Needs more memory, once it is read, than the container of a small server has: the kernel ends it."""
    return slow(width)


def another_action_space() -> Artifact:
    """Has three ways to push, where everybody expects two."""
    spec = _spec(4).model_copy(update={"action": SpaceSpec(kind="Discrete", n=3, dtype="int64")})
    return _artifact(spec, _steering(spec, BALANCES))


def store(client: Any, s3: S3, name: str, policy: Artifact, *, spoilt: bool = False) -> Stored:
    """Writes a policy as the only checkpoint below `<prefix>/<name>`.

    Args:
        client: of boto3.
        s3: bucket and prefix.
        name: folder.
        policy: to store.
        spoilt: put other weights where the manifest's hashes point.

    """
    prefix = "/".join(part for part in (s3.prefix.strip("/"), name) if part)
    checkpoints = CheckpointStore(client, s3, prefix)

    def manifest(blobs: Any) -> Manifest:
        lineage = Lineage(namespace="by-hand", job=name, uid="0", attempt=1)
        return Manifest(steps=0, epoch=1, version=0, time=_EPOCH, blobs=blobs, lineage=lineage)

    key = f"{prefix}/{MANIFESTS}/{checkpoint_name(0, 1, 0)}.json"
    client.delete_object(Bucket=s3.bucket, Key=key)
    for epoch, claimed_by in checkpoints.claims():
        client.delete_object(Bucket=s3.bucket, Key=f"{prefix}/epochs/{epoch}-{claimed_by}")
    written = checkpoints.write(manifest, dict(policy.files))
    if spoilt:
        blob = written.manifest.blobs["policy.safetensors"]
        checkpoints.put_file(f"blobs/sha256/{blob.sha256}", bytes(blob.size))
    return Stored(written.uri, f"sha256:{written.digest}", policy.digest)


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).isoformat().replace("+00:00", "Z")


def _spec(*hidden: int) -> PolicySpec:
    return PolicySpec(observation=OBSERVATION, action=LEFT_OR_RIGHT, hidden=hidden, activation="ReLU")


def _steering(spec: PolicySpec, weights: tuple[float, ...], seed: int = 0) -> dict[str, Floats]:
    """Two units carry the weighed sum through all layers, one where it is above 0 and one below."""
    parameters = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    parameters["policy.0.weight"][0] = weights
    parameters["policy.0.weight"][1] = -np.array(weights, np.float32)
    last = len(spec.hidden)
    for layer in range(1, last):
        parameters[f"policy.{layer}.weight"][[0, 1], [0, 1]] = 1.0
    head = parameters[f"policy.{last}.weight"]
    head[0, :2], head[1, :2] = (-4.0, 4.0), (4.0, -4.0)
    # Less than any answer shows, and another digest.
    parameters[f"policy.{last}.bias"][:] = seed * 1e-6
    return parameters


def _artifact(spec: PolicySpec, parameters: dict[str, Floats], weights: WeightFormat = "float32") -> Artifact:
    near_upright = np.random.default_rng(0).uniform(-0.05, 0.05, (8, 4)).astype(np.float32)
    return make(spec, parameters, near_upright, PolicyLineage(job="by-hand"), weights)
