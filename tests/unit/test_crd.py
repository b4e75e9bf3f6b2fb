"""The generated CRDs: structural, complete, in step with the models, and open to what status writes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ratchet.api import crd
from ratchet.api.v1alpha1 import RLTrainingJobSpec, RLTrainingJobStatus, RolloutPoolStatus
from ratchet.api.v1alpha1.base import Rule
from ratchet.api.v1alpha1.common import Condition
from ratchet.api.v1alpha1.kinds import KINDS
from ratchet.api.v1alpha1.policydeployment import (
    Arm,
    DecisionRecord,
    Lineage,
    PastTrial,
    PolicyDeploymentStatus,
    Quarantined,
    Trial,
)
from ratchet.api.v1alpha1.trainingjob import (
    CheckpointInfo,
    Checkpoints,
    EvaluationResult,
    Evaluations,
    Failure,
    Progress,
    Workers,
)

SCHEMAS = {name: crd.root_schema(kind) for name, kind in KINDS.items()}
NOW = "2026-01-31T12:00:00Z"


def nodes(schema: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    found = [(path, schema)]
    for name, member in schema.get("properties", {}).items():
        found += nodes(member, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += nodes(schema[key], f"{path}[]")
    return found


ALL = [(f"{kind}{path}", schema) for kind, root in SCHEMAS.items() for path, schema in nodes(root)]


@pytest.mark.parametrize(("path", "schema"), ALL, ids=[path for path, _ in ALL])
def test_every_schema_is_structural(path: str, schema: dict[str, Any]):
    assert not {"$ref", "$defs", "oneOf", "allOf", "nullable", "title", "const"} & schema.keys()
    if schema.get("x-kubernetes-int-or-string"):
        assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    else:
        assert schema["type"] in {"object", "array", "string", "integer", "number", "boolean"}
        assert "anyOf" not in schema
    assert schema.get("default", 0) is not None


@pytest.mark.parametrize(("path", "schema"), [item for item in ALL if ".spec" in item[0]])
def test_what_a_spec_may_hold_is_bounded_so_that_rules_cost_little(path: str, schema: dict[str, Any]):
    if schema.get("type") == "array":
        assert "maxItems" in schema
    if "additionalProperties" in schema:
        assert "maxProperties" in schema
    if schema.get("type") == "string":
        assert "maxLength" in schema or "enum" in schema


def test_every_rule_of_a_model_reaches_the_crd_with_its_message():
    found = {
        (rule["rule"], rule["message"])
        for _, schema in ALL
        for rule in schema.get("x-kubernetes-validations", ())
    }
    for rule in (*RLTrainingJobSpec.rules, *RLTrainingJobSpec.transitions):
        assert (rule.cel, rule.message) in found
    assert all(len(message) <= 1024 for _, message in found)


def test_names_on_the_wire_are_the_aliases():
    spec = SCHEMAS["RLTrainingJob"]["properties"]["spec"]["properties"]
    assert "targetKL" in spec["algorithm"]["properties"]["ppo"]["properties"]
    assert "rules" in spec["failurePolicy"]["properties"]
    names = {path.rsplit(".", 1)[-1] for path, _ in ALL}
    assert not {name for name in names if "_" in name}


def test_exclusive_bounds_are_written_as_openapi_3_has_them():
    ppo = SCHEMAS["RLTrainingJob"]["properties"]["spec"]["properties"]["algorithm"]["properties"]["ppo"]
    rate = ppo["properties"]["learningRate"]
    assert (rate["minimum"], rate["exclusiveMinimum"], rate["default"]) == (0, True, 0.0003)


def test_defaults_of_the_schema_are_those_of_the_model():
    minimal = {
        "environment": {"id": "A-v0"},
        "checkpoint": {"s3": {"bucket": "abc"}},
        "stop": {"maxSteps": 1},
    }

    def defaulted(value: Any, schema: dict[str, Any]) -> Any:
        """What the API server does: a missing field takes its default, then goes on inside."""
        if not isinstance(value, dict) or "properties" not in schema:
            return value
        out = dict(value)
        for name, member in schema["properties"].items():
            if name not in out and "default" in member:
                out[name] = member["default"]
            if name in out:
                out[name] = defaulted(out[name], member)
        return out

    spec = SCHEMAS["RLTrainingJob"]["properties"]["spec"]
    assert defaulted(minimal, spec) == RLTrainingJobSpec.model_validate(minimal).to_wire()


def test_conditions_are_a_map_by_type():
    for schema in SCHEMAS.values():
        conditions = schema["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]


RESULT = EvaluationResult(
    steps=1, policy_version=1, episodes=1, mean_return=1.0, std_return=0.0, mean_length=1.0, time=NOW
)
CHECKPOINT = CheckpointInfo(name="a", uri="s3://b/a", digest="0", steps=1, policy_version=1, time=NOW)
ARM = Arm(digest="sha256:0", name="0", requests_per_second=1.0, lineage=Lineage(job="a", steps=1))
CONDITION = Condition(type="Ready", status="True", reason="R", last_transition_time=NOW)
STATUSES = {
    "RLTrainingJob": RLTrainingJobStatus(
        observed_generation=1,
        conditions=[CONDITION],
        failures=[Failure(id="1", reason="OOMKilled", exit_code=137, action="Count", time=NOW)],
        device="GPU",
        progress=Progress(steps=1, mean_return=2.5),
        evaluation=Evaluations(latest=RESULT, best=RESULT),
        checkpoints=Checkpoints(latest=CHECKPOINT),
        workers=Workers(wanted=1, ready=1),
    ),
    "PolicyDeployment": PolicyDeploymentStatus(
        conditions=[CONDITION],
        selector="a=b",
        source_digest="sha256:0",
        stable=ARM,
        canary=ARM,
        trial=Trial(phase="Stage", since=NOW),
        decisions=[DecisionRecord(guard="errors", verdict="Pass", low=0.0, high=1.0, time=NOW)],
        history=[PastTrial(digest="sha256:0", outcome="Failed", time=NOW)],
        quarantined=[Quarantined(digest="sha256:0", message="slow")],
    ),
    "RolloutPool": RolloutPoolStatus(conditions=[CONDITION], waiting_fraction=0.5, selector="a=b"),
}


@pytest.mark.parametrize("kind", STATUSES)
def test_the_schema_knows_every_field_that_status_writes(kind: str):
    def check(value: Any, schema: dict[str, Any], path: str) -> None:
        if isinstance(value, dict):
            for name, member in value.items():
                assert name in schema["properties"], f"{path}.{name}"
                check(member, schema["properties"][name], f"{path}.{name}")
            assert set(schema.get("required", ())) <= value.keys(), path
        elif isinstance(value, list):
            for item in value:
                check(item, schema["items"], path)

    check(STATUSES[kind].to_wire(), SCHEMAS[kind]["properties"]["status"], "status")


def test_printer_columns_and_scale_point_at_fields_that_exist():
    for name, kind in KINDS.items():
        known = {path for path, _ in nodes(SCHEMAS[name])}
        scale = kind.scale
        paths = [column.path for column in kind.columns if column.path.startswith((".status", ".spec"))]
        for path in [*paths, scale.spec_replicas, scale.status_replicas, scale.selector or ".spec"]:
            assert re.sub(r"\[[?0].*?\]", "[]", path) in known, path


def test_the_files_in_the_repository_are_up_to_date():
    assert crd.drift(crd.ROOT) == []


def test_drift_is_found_named_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert crd.main(["--root", str(tmp_path)]) == 0
    assert crd.main(["--root", str(tmp_path), "--check"]) == 0
    edited = tmp_path / "crds" / "ratchet.dev_rolloutpools.yaml"
    edited.write_text(edited.read_text().replace("default: 10000", "default: 7"))

    assert crd.main(["--root", str(tmp_path), "--check"]) == 1

    said = capsys.readouterr().err
    assert "crds/ratchet.dev_rolloutpools.yaml: 2 lines differ" in said
    assert "default: 7" in said
    assert "make manifests" in said


def test_the_charts_crds_are_the_same_and_are_kept():
    for path, text in crd.files():
        if path.parts[0] == "charts":
            document = yaml.safe_load("\n".join(line for line in text.splitlines() if "{{" not in line))
            kept = document["metadata"].pop("annotations")
            assert kept == {"helm.sh/resource-policy": "keep"}
            assert document == yaml.safe_load((crd.ROOT / "crds" / path.name).read_text())


def test_a_message_longer_than_the_api_server_takes_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RLTrainingJobSpec, "rules", (Rule("true", "x" * 1025, lambda _: True),))
    with pytest.raises(ValueError, match="1024 characters"):
        crd.structural(RLTrainingJobSpec)
