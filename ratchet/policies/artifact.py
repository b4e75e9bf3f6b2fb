"""A policy as three files that need nothing else: what it is, its parameters, and answers to check them by.

`policy.json` names the other two with size and SHA-256, so its own SHA-256 is the digest of the policy. In a
checkpoint the three are blobs; a folder or a prefix in a bucket holds them as files. How a file is fetched is
the caller's.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.policies.acting import NORMALIZED_LIMIT, VARIANCE_FLOOR
from ratchet.policies.errors import (
    ArtifactCorrupt,
    ArtifactDisagrees,
    ArtifactError,
    ArtifactMissing,
    ArtifactUnsupported,
)
from ratchet.policies.formats import Floats, WeightFormat, decode, encode, read_arrays, write_arrays
from ratchet.policies.networks import by_speed, checked
from ratchet.policies.serving import ServedPolicy
from ratchet.policies.spec import PolicySpec, SpaceSpec

SCHEMA_VERSION = 1
DESCRIPTION, WEIGHTS, GOLDEN = "policy.json", "policy.safetensors", "golden.safetensors"
# Largest difference to a golden answer, as a share of the largest answer or of 1. Float32 leaves room for
# another order of summation; bfloat16 keeps 8 bits of each weight, int8 7 bits below the largest of its row.
TOLERANCE: dict[WeightFormat, float] = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.06}


class _Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        ser_json_inf_nan="strings",
    )


class File(_Model):
    """One of the other files."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Preprocessing(_Model):
    """What happens to an observation, once flattened, before the first layer.

    Attributes:
        normalize: (x - observation.mean) / sqrt(observation.variance + epsilon), limited to ±limit.

    """

    normalize: bool
    epsilon: float = VARIANCE_FLOOR
    limit: float = NORMALIZED_LIMIT


class PolicyLineage(_Model):
    """Where a policy comes from.

    Attributes:
        checkpoint: name of the checkpoint that it is part of, whose digest can't be here: it contains this
            file's.
        config: SHA-256 of the trainer's configuration.
        image: of the trainer.
        converted_from: digest of the policy that this one has in another number format.

    """

    namespace: str = ""
    job: str = ""
    uid: str = ""
    attempt: int = 0
    checkpoint: str = ""
    steps: int = 0
    version: int = 0
    config: str = ""
    image: str = ""
    converted_from: str | None = None


class Description(_Model):
    """The content of `policy.json`.

    Attributes:
        evaluated: what these very parameters did in an evaluation; None where there was none, or one by a
            trainer that did not count actions.

    """

    schema_version: int = SCHEMA_VERSION
    spec: PolicySpec
    preprocessing: Preprocessing
    weights: WeightFormat
    files: dict[str, File]
    lineage: PolicyLineage
    evaluated: EvaluatedActions | None = None

    def to_bytes(self) -> bytes:
        """Canonical: keys sorted, no space between tokens."""
        content = json.loads(self.model_dump_json(by_alias=True, exclude_none=True))
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A policy whose bytes are those that its digest promises.

    Attributes:
        digest: SHA-256 of `policy.json` in hex.
        files: content by name.

    """

    digest: str
    description: Description
    files: Mapping[str, bytes]

    def parameters(self) -> dict[str, Floats]:
        """As float32; raises ArtifactCorrupt as `formats.decode`."""
        return decode(self.files[WEIGHTS], self.description.weights)

    def policy(self, seed: int | None = None) -> ServedPolicy:
        """Ready to decide, its golden answers checked.

        Args:
            seed: of rows that bring none.

        Raises:
            ArtifactCorrupt: the parameters do not fit the spec.
            ArtifactDisagrees: an answer is another than where the policy was made.

        """
        spec, weights = self.description.spec, self.description.weights
        evaluated = self.description.evaluated
        try:
            own = checked(spec, self.parameters())
            *faster, last = [
                ServedPolicy(
                    self.digest, spec, network, own.get("log_std"), seed, self.description.lineage, evaluated
                )
                for network in by_speed(spec, own, weights)
            ]
        except ValueError as error:
            raise ArtifactCorrupt(f"policy {self.digest[:12]}: {error}") from error
        for policy in faster:
            try:
                self.check(policy)
            except ArtifactDisagrees:
                continue
            return policy
        self.check(last)
        return last

    def check(self, policy: ServedPolicy) -> float:
        """The largest difference to a golden answer, as a share of the largest answer or of 1.

        Raises:
            ArtifactDisagrees: it is above the tolerance of the format.

        """
        tensors = {name: array for name, (_, array) in read_arrays(self.files[GOLDEN], GOLDEN).items()}
        observation = golden_observations(self.files[GOLDEN], policy.spec.observation)
        if len(observation) == 0:
            raise ArtifactCorrupt(f"{GOLDEN} has no observations of this policy")
        largest = 0.0
        for name, found in _answers(policy, observation).items():
            wanted = tensors.get(name)
            if wanted is None or wanted.shape != found.shape:
                raise ArtifactCorrupt(f"{GOLDEN} has no {name} of this policy")
            scale = max(1.0, float(np.abs(wanted).max()))
            apart = float(np.abs(found - wanted).max()) / scale
            # A NaN is no small difference either.
            if not apart <= TOLERANCE[self.description.weights]:
                raise ArtifactDisagrees(
                    f"policy {self.digest[:12]} with {self.description.weights} weights gives {name} that "
                    f"are off by {apart:.2g}, above {TOLERANCE[self.description.weights]:g}: export it in a "
                    "wider format, or from its checkpoint again"
                )
            largest = max(largest, apart)
        return largest


def make(
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[Any]],
    observations: NDArray[Any],
    lineage: PolicyLineage,
    weights: WeightFormat = "float32",
    evaluated: EvaluatedActions | None = None,
) -> Artifact:
    """An artifact with golden answers of these exact parameters.

    Args:
        spec: spaces and network.
        parameters: float32, of the policy and of its value network if it has one.
        observations: (K, *observation shape) that were met in training; where there is none, some are drawn.
        lineage: where they come from.
        weights: what to store them as.
        evaluated: what they did in an evaluation.

    Raises:
        ValueError: the parameters do not fit the spec.
        ArtifactDisagrees: this format loses too much of them.

    """
    if len(observations) == 0:
        observations = _drawn(spec.observation, 8)
    exact = ServedPolicy.of("", spec, parameters)
    golden = {"observation": observations, **_answers(exact, observations)}
    files = {WEIGHTS: encode(parameters, weights), GOLDEN: write_arrays(golden)}
    description = Description(
        spec=spec,
        preprocessing=Preprocessing(normalize=spec.normalizes_observations),
        weights=weights,
        files={name: File(sha256=_sha256(content), size=len(content)) for name, content in files.items()},
        lineage=lineage,
        evaluated=evaluated,
    )
    text = description.to_bytes()
    artifact = Artifact(_sha256(text), description, {DESCRIPTION: text, **files})
    if weights != "float32":
        artifact.policy()
    return artifact


def convert(artifact: Artifact, weights: WeightFormat) -> Artifact:
    """The same policy in another number format; raises ArtifactDisagrees where that loses too much."""
    if weights == artifact.description.weights:
        return artifact
    spec = artifact.description.spec
    observations = golden_observations(artifact.files[GOLDEN], spec.observation)
    lineage = artifact.description.lineage.model_copy(update={"converted_from": artifact.digest})
    evaluated = artifact.description.evaluated
    return make(spec, artifact.parameters(), observations, lineage, weights, evaluated)


def golden_observations(content: bytes | None, space: SpaceSpec) -> NDArray[Any]:
    """Those of a `golden.safetensors`, (K, *space.shape); none where there is no file or it is of another."""
    if content is not None:
        found = read_arrays(content, GOLDEN).get("observation")
        if found is not None and found[1].shape[1:] == space.shape and found[1].dtype == space.dtype:
            return found[1]
    return np.empty((0, *space.shape), space.dtype)


def read(fetch: Callable[[str], bytes], digest: str | None = None) -> Artifact:
    """Reads and verifies an artifact.

    Args:
        fetch: content of a file by name; raises ArtifactError where it can't be had.
        digest: that the artifact must have, in hex, or None for whichever is there.

    Raises:
        ArtifactCorrupt: bytes are not those that are promised.
        ArtifactUnsupported: it was written by a version that knows more.

    """
    text = fetch(DESCRIPTION)
    found = _sha256(text)
    if digest is not None and found != digest:
        raise ArtifactCorrupt(f"{DESCRIPTION} has the digest {found}, not {digest} as asked for")
    description = describe(text)
    files = {DESCRIPTION: text}
    for name in (WEIGHTS, GOLDEN):
        promised = description.files.get(name)
        if promised is None:
            raise ArtifactCorrupt(f"{DESCRIPTION} does not name {name}")
        files[name] = fetch(name)
        if len(files[name]) != promised.size:
            raise ArtifactCorrupt(f"{name} has {len(files[name])} bytes, not {promised.size}")
        if _sha256(files[name]) != promised.sha256:
            raise ArtifactCorrupt(f"{name} has the digest {_sha256(files[name])}, not {promised.sha256}")
    return Artifact(found, description, files)


def describe(text: bytes) -> Description:
    """The content of `policy.json`; raises ArtifactCorrupt or ArtifactUnsupported."""
    try:
        content: Any = json.loads(text)
        version = content["schemaVersion"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactCorrupt(f"{DESCRIPTION} is no JSON object with schemaVersion") from None
    if version != SCHEMA_VERSION:
        raise ArtifactUnsupported(f"{DESCRIPTION} has schema version {version}; this reads {SCHEMA_VERSION}")
    try:
        description = Description.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactUnsupported(f"{DESCRIPTION} is wrong at {where}: {first['msg']}") from None
    if description.preprocessing != Preprocessing(normalize=description.spec.normalizes_observations):
        raise ArtifactUnsupported(f"{DESCRIPTION} asks for a preprocessing that this version does not do")
    return description


def read_folder(folder: Path, digest: str | None = None) -> Artifact:
    """The artifact in a folder, as `read`; raises ArtifactMissing where a file is not there."""

    def fetch(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise ArtifactMissing(f"{folder / name} can't be read: {error.strerror}") from error

    return read(fetch, digest)


def write_folder(artifact: Artifact, folder: Path) -> None:
    """Writes each file as a whole, `policy.json` last: what is read meanwhile verifies, or is refused.

    Raises:
        ArtifactError: the folder can't be written to.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, GOLDEN, DESCRIPTION):
            unfinished = folder / f".{name}.{os.getpid()}"
            unfinished.write_bytes(artifact.files[name])
            unfinished.replace(folder / name)
    except OSError as error:
        raise ArtifactError(f"{folder} can't be written to: {error.strerror}") from error


def _answers(policy: ServedPolicy, observations: NDArray[Any]) -> dict[str, Floats]:
    found = policy.outputs(observations)
    named = {"outputs": found.outputs, "value": found.value, "state": found.states}
    return {name: value for name, value in named.items() if value is not None}


def _drawn(space: SpaceSpec, count: int) -> NDArray[Any]:
    """Elements of a space, for a policy that has met none: within bounds, normal where there are none."""
    rng = np.random.default_rng(0)
    shape = (count, *space.shape)
    if space.kind == "Box":
        low, high = (
            np.clip(np.asarray(bound if bound is not None else default, np.float64), -10, 10)
            for bound, default in ((space.low, -1.0), (space.high, 1.0))
        )
        low, high = (np.broadcast_to(bound.reshape(-1), (space.size,)) for bound in (low, high))
        return (low + (high - low) * rng.random((count, space.size))).reshape(shape).astype(space.dtype)
    counts = np.array(2 if space.kind == "MultiBinary" else space.nvec or space.n)
    drawn = np.floor(rng.random((count, space.size)) * counts).astype(np.int64) + np.asarray(space.start)
    return drawn.reshape(shape).astype(space.dtype)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
