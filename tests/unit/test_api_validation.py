"""Offline validation: the corpus of bad manifests, the examples, and what people mistype."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ratchet.api.validation import Problem, problems

ROOT = Path(__file__).parents[2]
CORPUS = sorted((ROOT / "tests/data/invalid").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

JOB: dict[str, Any] = {
    "apiVersion": "ratchet.dev/v1alpha1",
    "kind": "RLTrainingJob",
    "metadata": {"name": "cartpole"},
    "spec": {
        "environment": {"id": "CartPole-v1"},
        "checkpoint": {"s3": {"bucket": "policies"}},
        "stop": {"maxSteps": 1000},
    },
}


def header(path: Path, key: str) -> str:
    prefix = f"# {key}: "
    lines = path.read_text().splitlines()
    return next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "")


def with_spec(**changes: Any) -> dict[str, Any]:
    job = copy.deepcopy(JOB)
    job["spec"].update(changes)
    return job


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_bad_manifest_is_refused_where_and_why_its_header_says(path: Path):
    found = problems(yaml.safe_load(path.read_text()))

    assert [problem.where for problem in found] == [header(path, "path")]
    assert header(path, "refused") in found[0].sentence
    assert header(path, "refused"), "the header of a corpus file names the sentence"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path):
    for document in yaml.safe_load_all(path.read_text()):
        assert problems(document) == []


def test_the_corpus_has_every_rule_of_every_model():
    from ratchet.api.crd import root_schema
    from ratchet.api.v1alpha1.kinds import KINDS

    def messages(schema: Any) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(messages, schema)) if schema else set()
        if not isinstance(schema, dict):
            return set()
        own = {
            rule["message"]
            for rule in schema.get("x-kubernetes-validations", ())
            if "oldSelf" not in rule["rule"]
        }
        return own.union(*(messages(member) for member in schema.values()))

    sentences = [header(path, "refused") for path in CORPUS]
    for message in set().union(*(messages(root_schema(kind)) for kind in KINDS.values())):
        assert any(message.startswith(sentence) for sentence in sentences), message


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("min_replicas", "minReplicas"), ("Replicas", "replicas"), ("maxpolicylag", "maxPolicyLag")],
)
def test_a_mistyped_field_gets_the_known_one_suggested(mistyped: str, meant: str):
    (problem,) = problems(with_spec(rollouts={mistyped: 1}))

    assert problem.sentence == f'unknown field "spec.rollouts.{mistyped}"; did you mean {meant}?'


def test_every_problem_is_told_at_once():
    found = problems(with_spec(rollouts={"replicas": 0, "mode": "Async"}, suspend="no"))

    assert {problem.where for problem in found} == {
        "spec.rollouts.replicas",
        "spec.rollouts.mode",
        "spec.suspend",
    }


@pytest.mark.parametrize("rollouts", [None, {"replicas": None}, {"resources": {"limits": {"cpu": None}}}])
def test_an_empty_line_is_as_good_as_no_line(rollouts: Any):
    assert problems(with_spec(rollouts=rollouts)) == []


def test_an_empty_line_with_an_unknown_name_is_still_unknown():
    (problem,) = problems(with_spec(rollouts={"replica": None}))

    assert problem.sentence == 'unknown field "spec.rollouts.replica"; did you mean replicas?'


def test_a_free_form_field_takes_anything_even_null():
    assert problems(with_spec(environment={"id": "A-v0", "kwargs": {"a": None, "b": [1, {"c": 2}]}})) == []


@pytest.mark.parametrize("quantity", [2, "500m", "4Gi", "1.5", "1e3"])
def test_a_quantity_is_an_integer_or_a_string(quantity: Any):
    assert problems(with_spec(trainer={"resources": {"limits": {"cpu": quantity}}})) == []


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_what_is_no_object_is_said_to_be_none(document: object):
    assert problems(document) == [
        Problem((), "is not a Kubernetes object: write apiVersion, kind, metadata and spec")
    ]


def test_another_version_names_the_one_there_is():
    (problem,) = problems(JOB | {"apiVersion": "ratchet.dev/v1"})

    assert problem.where == "apiVersion"
    assert '"ratchet.dev/v1alpha1"' in problem.sentence


def test_a_generated_name_counts_with_its_suffix():
    assert problems(JOB | {"metadata": {"generateName": "a" * 35}}) == []
    assert problems(JOB | {"metadata": {"generateName": "a" * 36}}) != []
