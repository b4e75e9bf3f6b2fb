"""An artifact is read as it was written, or refused with what is wrong; each number format is near."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from servedpolicies import CARTPOLE, artifact, observations, plain, policy_specs, random_parameters

from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.policies import ServedPolicy, SpaceSpec
from ratchet.policies.artifact import (
    DESCRIPTION,
    GOLDEN,
    TOLERANCE,
    WEIGHTS,
    Artifact,
    File,
    PolicyLineage,
    convert,
    describe,
    make,
    read,
    read_folder,
    write_folder,
)
from ratchet.policies.errors import (
    ArtifactCorrupt,
    ArtifactDisagrees,
    ArtifactError,
    ArtifactMissing,
    ArtifactUnsupported,
)
from ratchet.policies.formats import FORMATS, WeightFormat, encode, from_int8, to_int8
from ratchet.policies.networks import by_speed
from ratchet.policies.torchnetwork import TorchNetwork

EVALUATED = EvaluatedActions(
    episodes=20, decisions=9_000, deterministic=True, counts=(4_000, 5_000), error=(0.01, 0.01)
)


def renamed(old: Artifact, **files: bytes | None) -> dict[str, bytes]:
    """Its files with others in their place, whose hashes `policy.json` then names."""
    changed = {**old.files, **{f"{name}.safetensors": content for name, content in files.items() if content}}
    named = {
        name: File.model_validate({"sha256": _sha256(changed[name]), "size": len(changed[name])})
        for name in (WEIGHTS, GOLDEN)
    }
    return {**changed, DESCRIPTION: old.description.model_copy(update={"files": named}).to_bytes()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@settings(max_examples=60)
@given(st.data())
def test_what_is_written_is_read_and_answers_the_same(data: st.DataObject):
    spec = data.draw(policy_specs())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = random_parameters(spec, value=data.draw(st.booleans()))
    seen = observations(spec, data.draw(st.integers(0, 3)), rng)
    lineage = PolicyLineage(namespace="ns", job="j", attempt=2, steps=7, image="i")
    did = data.draw(st.sampled_from([None, EVALUATED]))

    written = make(spec, values, seen, lineage, evaluated=did)
    found = read(written.files.__getitem__, written.digest)

    assert found.description == written.description
    assert found.description.spec == spec
    assert found.description.lineage == lineage
    assert {name: value.tobytes() for name, value in found.parameters().items()} == {
        name: value.tobytes() for name, value in values.items()
    }
    exact, served = ServedPolicy.of("", spec, values), found.policy()
    assert served.digest == written.digest
    assert served.evaluated == did
    asked = observations(spec, 3, rng)
    for one, other in zip(exact.outputs(asked), served.outputs(asked), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_digest_names_the_content_and_nothing_else():
    assert artifact().digest == artifact().digest
    assert artifact().digest != artifact(seed=1).digest
    assert artifact().digest == _sha256(artifact().files[DESCRIPTION])


@pytest.mark.parametrize("weights", FORMATS)
def test_every_format_is_smaller_or_exact_and_within_its_tolerance(weights: WeightFormat):
    spec = CARTPOLE.model_copy(update={"recurrent_size": 16})
    exact = artifact(spec)
    stored = convert(exact, weights)

    assert stored.description.weights == weights
    assert stored.check(stored.policy()) <= TOLERANCE[weights]
    assert len(stored.files[WEIGHTS]) < {"float32": 1.01, "bfloat16": 0.56, "int8": 0.35}[weights] * len(
        exact.files[WEIGHTS]
    )
    if weights != "float32":
        assert stored.description.lineage.converted_from == exact.digest
        assert stored.digest != exact.digest
    decided = stored.policy().decide(**plain(np.zeros((3, 4), np.float32)))
    assert np.isfinite(decided.log_probability).all()


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    )
)
def test_int8_is_off_by_half_a_step_of_its_row_at_most(weight: np.ndarray):
    quantized, scale = to_int8(weight)
    again = from_int8(quantized, scale)
    steps = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(again - weight) <= steps * 0.501 + 1e-37).all()
    assert scale.shape == weight.shape[:1]


def test_a_format_that_loses_too_much_is_refused_where_it_is_made():
    """One large weight in a row leaves its small ones no bits; here the answers hang on the small ones."""
    spec = CARTPOLE.model_copy(update={"hidden": (8,), "activation": "ReLU"})
    values = {name: np.zeros_like(value) for name, value in random_parameters(spec, value=False).items()}
    values["policy.0.weight"][:, 0] = 1000.0
    values["policy.0.weight"][:, 1:] = 1.0
    values["policy.1.weight"][:] = 1.0
    seen = np.array([[0.0, 1.0, 1.0, 1.0]], np.float32)
    exact = make(spec, values, seen, PolicyLineage())
    with pytest.raises(ArtifactDisagrees, match="int8 weights gives outputs that are off by 1, above"):
        convert(exact, "int8")
    assert convert(exact, "bfloat16").description.weights == "bfloat16"


@pytest.mark.parametrize("weights", FORMATS)
def test_a_large_policy_is_within_its_tolerance_whatever_multiplies_it(weights: WeightFormat):
    spec = CARTPOLE.model_copy(update={"hidden": (600, 600)})
    stored = convert(artifact(spec), weights)
    for network in by_speed(spec, stored.parameters(), weights):
        policy = ServedPolicy(stored.digest, spec, network, None)
        assert stored.check(policy) <= TOLERANCE[weights]


def test_what_is_fastest_is_passed_over_where_it_answers_otherwise():
    """Weights that 8 bits hold, and inputs that 8 bits don't: one is large, and counts for nothing."""
    spec = CARTPOLE.model_copy(update={"hidden": (600, 600), "activation": "ReLU"})
    values = {name: np.zeros_like(value) for name, value in random_parameters(spec, value=False).items()}
    values["policy.0.bias"][:] = 1.0
    values["policy.0.bias"][0] = 1000.0
    values["policy.1.weight"][:, 1:] = 1.0
    values["policy.2.weight"][:] = 1.0
    stored = make(spec, values, np.zeros((1, 4), np.float32), PolicyLineage(), "int8")
    with pytest.raises(ArtifactDisagrees):
        stored.check(ServedPolicy("", spec, TorchNetwork(spec, stored.parameters(), "int8"), None))
    assert stored.check(stored.policy()) == 0


def test_a_policy_that_met_no_observations_gets_some_of_its_space():
    for space in (
        SpaceSpec(kind="Box", shape=(3,), low=float("-inf"), high=(1.0, 2.0, float("inf"))),
        SpaceSpec(kind="Discrete", dtype="int64", n=3, start=4),
        SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3), start=(1, -1)),
        SpaceSpec(kind="MultiBinary", dtype="int8", shape=(2, 2)),
        SpaceSpec(kind="Box", dtype="uint8", shape=(2, 2), low=0.0, high=255.0),
    ):
        spec = CARTPOLE.model_copy(update={"observation": space})
        made = make(spec, random_parameters(spec), np.empty((0, *space.shape)), PolicyLineage())
        assert made.policy().spec == spec


# What a disk, a network or another version can do to it


@given(st.sampled_from([DESCRIPTION, WEIGHTS, GOLDEN]), st.data())
def test_any_changed_byte_is_refused(name: str, data: st.DataObject):
    written = artifact()
    content = bytearray(written.files[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ArtifactError):
        read({**written.files, name: bytes(content)}.__getitem__, written.digest)


@given(st.sampled_from([WEIGHTS, GOLDEN]), st.data())
def test_a_file_cut_short_or_too_long_is_refused_with_both_sizes(name: str, data: st.DataObject):
    written = artifact()
    size = len(written.files[name])
    content = (written.files[name] + b"x")[: data.draw(st.integers(0, size + 1).filter(lambda n: n != size))]
    with pytest.raises(ArtifactCorrupt, match=f"{name} has {len(content)} bytes, not {size}"):
        read({**written.files, name: content}.__getitem__)


@settings(max_examples=300)
@given(st.data())
def test_damage_that_a_hash_vouches_for_is_refused_or_harmless(data: st.DataObject):
    """Whoever made the file may have made it wrong: it is an ArtifactError, never another one."""
    written = artifact(weights=data.draw(st.sampled_from(FORMATS)))
    which = data.draw(st.sampled_from(["policy", "golden"]))
    content = bytearray(written.files[f"{which}.safetensors"])
    for _ in range(data.draw(st.integers(1, 3))):
        # The header is where safetensors can be wrong in more ways.
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 120))
        content[place] = data.draw(st.integers(0, 255))
    files = renamed(written, **{which: bytes(content)})
    try:
        policy = read(files.__getitem__).policy()
    except ArtifactError:
        return
    decided = policy.decide(**plain(np.zeros((2, 4), np.float32)))
    assert set(decided.action.tolist()) <= {0, 1}


def test_parameters_that_are_not_finite_are_refused():
    values = random_parameters(CARTPOLE)
    values["policy.1.bias"][3] = np.nan
    written = artifact()
    files = renamed(written, policy=encode(values))
    with pytest.raises(ArtifactCorrupt, match=r"policy.1.bias .* not finite"):
        read(files.__getitem__).policy()


def test_parameters_of_another_network_are_refused():
    other = random_parameters(CARTPOLE.model_copy(update={"hidden": (64, 32)}))
    files = renamed(artifact(), policy=encode(other))
    with pytest.raises(ArtifactCorrupt, match=r"policy.1.bias is \(32,\), not \(64,\)"):
        read(files.__getitem__).policy()


def test_a_policy_that_answers_otherwise_than_where_it_was_made_is_refused():
    files = renamed(artifact(), policy=encode(random_parameters(CARTPOLE, seed=9)))
    with pytest.raises(ArtifactDisagrees, match="gives outputs that are off by"):
        read(files.__getitem__).policy()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ("not JSON", ArtifactCorrupt, "no JSON object with schemaVersion"),
        ("[]", ArtifactCorrupt, "no JSON object with schemaVersion"),
        ("[" * 100_000, ArtifactCorrupt, "no JSON object with schemaVersion"),
        ({"schemaVersion": 2}, ArtifactUnsupported, "has schema version 2; this reads 1"),
        ({"weights": "int4"}, ArtifactUnsupported, "wrong at weights"),
        ({"spec": {"surprise": 1}}, ArtifactUnsupported, "wrong at spec.surprise"),
        (
            {"spec": {"action": {"dtype": "object"}}},
            ArtifactUnsupported,
            "object is no dtype of real numbers",
        ),
        ({"preprocessing": {"limit": 5.0}}, ArtifactUnsupported, "a preprocessing that this version"),
        ({"files": {WEIGHTS: {"sha256": "../../etc/passwd"}}}, ArtifactUnsupported, "wrong at files"),
    ],
)
def test_a_description_that_is_wrong_says_where(
    change: str | dict[str, Any], error: type[ArtifactError], sentence: str
):
    if not isinstance(change, str):
        change = json.dumps(_merged(json.loads(artifact().files[DESCRIPTION]), change))
    with pytest.raises(error, match=sentence):
        describe(change.encode())


def _merged(content: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return content | {
        name: _merged(content[name], value) if isinstance(value, dict) and name in content else value
        for name, value in change.items()
    }


def test_another_digest_than_asked_for_is_refused():
    written = artifact()
    with pytest.raises(ArtifactCorrupt, match=f"has the digest {written.digest}, not {'0' * 64}"):
        read(written.files.__getitem__, "0" * 64)


def test_a_folder_holds_one_and_says_what_it_lacks(tmp_path: Path):
    written = artifact()
    write_folder(written, tmp_path / "deep" / "er")
    assert read_folder(tmp_path / "deep" / "er", written.digest) == written
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == [
        GOLDEN,
        DESCRIPTION,
        WEIGHTS,
    ]
    write_folder(artifact(seed=1), tmp_path / "deep" / "er")
    assert read_folder(tmp_path / "deep" / "er").digest == artifact(seed=1).digest

    (tmp_path / "deep" / "er" / GOLDEN).unlink()
    with pytest.raises(ArtifactMissing, match=r"golden.safetensors can't be read: No such file"):
        read_folder(tmp_path / "deep" / "er")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="can't be written to"):
        write_folder(written, tmp_path / "file" / "below")


def test_a_policy_of_before_evaluations_were_kept_has_the_digest_that_it_had():
    old = artifact()
    assert "evaluated" not in json.loads(old.files[DESCRIPTION])
    assert read(old.files.__getitem__, old.digest).policy().evaluated is None


@pytest.mark.parametrize("weights", FORMATS)
def test_a_policy_in_another_format_is_promised_to_act_as_the_one_it_was_made_of(weights: WeightFormat):
    assert convert(artifact(evaluated=EVALUATED), weights).policy().evaluated == EVALUATED


def test_what_a_later_release_says_of_an_evaluation_is_passed_over():
    known = artifact(evaluated=EVALUATED)
    content = json.loads(known.files[DESCRIPTION])
    content["evaluated"]["masks"] = 3
    assert describe(json.dumps(content).encode()).evaluated == EVALUATED
