"""`ratchet validate`: files, folders, several documents, YAML that is none, and exit codes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ratchet.cli.main import app
from ratchet.cli.outcome import Exit

ROOT = Path(__file__).parents[2]
GOOD = (ROOT / "examples" / "cartpole-ppo.yaml").read_text()
SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: s3}\nstringData: {}\n"


def validate(*arguments: str, stdin: str | None = None) -> Any:
    result = CliRunner().invoke(app, ["validate", *arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_examples_folder_is_valid():
    result = validate("-f", str(ROOT / "examples"))

    assert result.exit_code == Exit.OK, result.output
    assert "RLTrainingJob/cartpole: valid" in result.output


def test_files_may_come_from_a_pattern_of_the_shell():
    files = [str(path) for path in sorted((ROOT / "examples").glob("*.yaml"))]

    assert validate(*files).exit_code == Exit.OK


def test_each_problem_is_a_line_with_file_object_path_and_sentence(tmp_path: Path):
    bad = tmp_path / "job.yaml"
    bad.write_text(GOOD.replace("interval: 10s", "interval: soon").replace("everySteps", "evrySteps"))

    result = validate("-f", str(bad))

    assert result.exit_code == Exit.NO
    first, second = sorted(result.stdout.splitlines())
    assert first.startswith(
        f'{bad}: RLTrainingJob/cartpole: spec.checkpoint.interval: Invalid value: "soon": '
    )
    assert second == (
        f"{bad}: RLTrainingJob/cartpole: spec.evaluation.evrySteps: "
        'unknown field "spec.evaluation.evrySteps"; did you mean everySteps?'
    )


def test_every_document_is_judged_and_others_objects_are_passed_over():
    bad = GOOD.replace("targetReturn: 475, maxSteps: 1000000", "")

    result = validate("-f", "-", stdin=f"{GOOD}---\n{SECRET}---\n{bad}")

    assert result.exit_code == Exit.NO
    assert len(result.stdout.splitlines()) == 1
    assert "training would never end" in result.stdout


def test_a_file_without_an_object_of_ratchet_is_a_mistake_of_usage():
    assert validate("-f", "-", stdin=SECRET).exit_code == Exit.USAGE


@pytest.mark.parametrize("arguments", [(), ("-f", "/nowhere/job.yaml")])
def test_nothing_to_read_is_a_mistake_of_usage(arguments: tuple[str, ...]):
    assert validate(*arguments).exit_code == Exit.USAGE


def test_broken_yaml_is_told_by_line_without_a_stack_trace():
    result = validate("-f", "-", stdin="kind: [a\nb: c\n")

    assert result.exit_code == Exit.NO
    assert "line 2, column 2: not valid YAML" in result.stderr


def test_a_key_written_twice_is_refused():
    twice = GOOD.replace("  stop:", "  stop: {maxSteps: 5}\n  stop:")

    result = validate("-f", "-", stdin=twice)

    assert result.exit_code == Exit.NO
    assert 'key "stop" is written twice' in result.stderr


def test_problems_as_data():
    result = validate("-f", "-", "-o", "json", stdin=GOOD.replace("RLTrainingJob", "RLTrainingJobs"))

    assert result.exit_code == Exit.NO
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem["path"] == "kind"
    assert '"RLTrainingJob", "RolloutPool"' in problem["message"]


GUIDE = (ROOT / "docs" / "policy-deployment.md").read_text()
STRATEGIES = re.findall(r"^\| `(\{type: .*?\})` \|", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_of_the_guide_is_valid_as_it_is_written_there(strategy: str):
    returns = yaml.safe_load(strategy)["type"] == "AB"
    text = f"""
apiVersion: ratchet.dev/v1alpha1
kind: PolicyDeployment
metadata: {{name: cartpole}}
spec:
  source: {{type: TrainingJob, trainingJob: {{jobRef: {{name: cartpole}}}}}}
  guards: {{episodeReturn: {{enabled: {str(returns).lower()}}}}}
  strategy: {strategy}
"""

    result = validate("-f", "-", stdin=text)

    assert result.exit_code == Exit.OK, result.output


def test_the_guide_shows_every_strategy():
    assert [yaml.safe_load(one)["type"] for one in STRATEGIES] == [
        "Canary", "BlueGreen", "Shadow", "AB", "AllAtOnce",
    ]  # fmt: skip
