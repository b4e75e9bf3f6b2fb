"""The `ratchet` command against a fake cluster: what it says, asks for, and exits with."""

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ratchet.api.v1alpha1.kinds import Kind
from ratchet.cli.cluster import Resource, Target
from ratchet.cli.main import app
from ratchet.cli.outcome import CommandError, Exit

EXAMPLES = Path(__file__).parents[2] / "examples"
CARTPOLE = str(EXAMPLES / "cartpole-ppo.yaml")
RESULT = {
    "steps": 40_000,
    "policyVersion": 40,
    "episodes": 100,
    "meanReturn": 487.5,
    "stdReturn": 3.25,
    "meanLength": 487.5,
    "time": "2026-01-31T12:00:40Z",
}
SAVED = {
    "name": "000000040000-1-40",
    "uri": "s3://ratchet/default/cartpole/1/manifests/000000040000-1-40.json",
    "digest": "sha256:" + "0" * 64,
    "steps": 40_000,
    "policyVersion": 40,
    "meanReturn": 487.5,
    "time": "2026-01-31T12:00:41Z",
}


def condition(kind: str, message: str, status: str = "True") -> Resource:
    return {
        "type": kind,
        "status": status,
        "reason": "Because",
        "message": message,
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }


def job(*conditions: Resource, name: str = "cartpole", **status: Any) -> Resource:
    spec = yaml.safe_load(Path(CARTPOLE).read_text())["spec"]
    created = {"name": name, "namespace": "default", "creationTimestamp": "2026-01-31T12:00:00Z"}
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "RLTrainingJob",
        "metadata": created,
        "spec": spec,
        "status": {"conditions": list(conditions), **status},
    }


def training(steps: int, mean: float, **status: Any) -> Resource:
    progress = {
        "steps": steps,
        "meanReturn": mean,
        "stepsPerSecond": 4321.0,
        "policyVersion": steps // 1000,
        "policyLag": 0.0,
    }
    return job(
        condition("Progressing", "1 of 1 workers play"),
        progress=progress,
        workers={"wanted": 1, "ready": 1},
        startTime="2026-01-31T12:00:00Z",
        **status,
    )


SUCCEEDED = job(
    condition("Succeeded", "the evaluation's mean return 487.5 reached 475"),
    progress={"steps": 40_000, "meanReturn": 450.0},
    evaluation={"latest": RESULT, "best": RESULT},
    checkpoints={"latest": SAVED, "best": SAVED},
    startTime="2026-01-31T12:00:00Z",
    completionTime="2026-01-31T12:00:41Z",
)
FAILED = job(
    condition("Failed", "the trainer ended with 10: no environment CartPol-v1"),
    failures=[
        {
            "id": "a/0",
            "reason": "Error",
            "exitCode": 10,
            "message": "no environment CartPol-v1",
            "action": "FailJob",
            "time": "2026-01-31T12:00:00Z",
        }
    ],
)


class FakeCluster:
    """Objects in a dictionary, and a script of what a watch will see."""

    def __init__(self, *jobs: Resource) -> None:
        self.namespace = "default"
        self.stored = {str(one["metadata"]["name"]): one for one in jobs}
        self.applied: list[tuple[str, Resource]] = []
        self.patched: list[tuple[str, Resource]] = []
        self.script: list[Resource | type[BaseException] | None] = []
        self.log_lines: list[tuple[str, str]] = []
        self.selectors: list[str] = []
        self.targets: list[Target] = []

    def connect(self, target: Target) -> "FakeCluster":
        self.targets.append(target)
        self.namespace = target.namespace or self.namespace
        return self

    def get(self, kind: Kind, name: str) -> Resource | None:
        return self.stored.get(name)

    def objects(self, kind: Kind, everywhere: bool = False) -> list[Resource]:
        return list(self.stored.values())

    def apply(self, resource: Resource, kind: Kind) -> Resource:
        self.applied.append((kind.plural, resource))
        return resource

    def patch(self, kind: Kind, name: str, change: Resource) -> Resource:
        self.patched.append((name, change))
        changed = copy.deepcopy(self.stored[name])
        changed["spec"].update(change["spec"])
        return changed

    def watch(self, kind: Kind, name: str, limit: float | None = None) -> Iterator[Resource | None]:
        for step in self.script:
            if isinstance(step, type):
                raise step
            yield step

    def pods(self, selector: str) -> list[str]:
        self.selectors.append(selector)
        return sorted({pod for pod, _ in self.log_lines})

    def logs(self, pods: list[str], follow: bool, tail: int | None) -> Iterator[tuple[str, str]]:
        yield from self.log_lines


def run(cluster: FakeCluster, *arguments: str, stdin: str | None = None) -> Any:
    result = CliRunner().invoke(app, list(arguments), obj=cluster.connect, input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_train_applies_the_file_and_says_how_to_watch():
    cluster = FakeCluster()

    result = run(cluster, "train", "-f", CARTPOLE)

    assert result.exit_code == Exit.OK
    assert [(plural, resource["metadata"]["name"]) for plural, resource in cluster.applied] == [
        ("rltrainingjobs", "cartpole")
    ]
    assert "ratchet watch cartpole" in result.output


def test_train_applies_a_pool_beside_its_job():
    cluster = FakeCluster()

    run(cluster, "train", "-f", str(EXAMPLES / "bounded-async.yaml"))

    assert [plural for plural, _ in cluster.applied] == ["rltrainingjobs", "rolloutpools"]


def test_train_applies_nothing_of_a_file_that_is_refused():
    cluster = FakeCluster()
    bad = Path(CARTPOLE).read_text().replace("targetReturn", "targetReturns")

    result = run(cluster, "train", "-f", "-", stdin=bad)

    assert result.exit_code == Exit.NO
    assert cluster.applied == []
    assert 'unknown field "spec.stop.targetReturns"; did you mean targetReturn?' in result.stderr


def test_watching_a_job_that_succeeds_shows_progress_and_ends_with_0():
    cluster = FakeCluster()
    cluster.script = [job(), training(1000, 22.0), training(30_000, 200.0), SUCCEEDED]

    result = run(cluster, "train", "-f", CARTPOLE, "--watch")

    assert result.exit_code == Exit.OK
    for told in (
        "Pending: the operator has not looked at it yet",
        "steps 1,000  steps/s 4,321  return 22.0",
        "workers 1/1",
        "487.5 ± 3.2 over 100 episodes, at 40,000 steps",
        "40,000 steps in 41s",
        "Try next",
        "ratchet checkpoints cartpole",
    ):
        assert told in result.output


def test_watching_a_job_that_fails_ends_with_1_and_says_where_to_look():
    cluster = FakeCluster(FAILED)
    cluster.script = [FAILED]

    result = run(cluster, "watch", "cartpole")

    assert result.exit_code == Exit.NO
    assert "no environment CartPol-v1" in result.output
    assert "Failed (Because): the trainer ended with 10" in result.output
    assert "ratchet status cartpole" in result.output


def test_ctrl_c_leaves_the_job_running_and_says_so():
    cluster = FakeCluster(training(1000, 22.0))
    cluster.script = [training(1000, 22.0), KeyboardInterrupt]

    result = run(cluster, "watch", "cartpole")

    assert result.exit_code == Exit.INTERRUPTED
    assert "cartpole goes on" in result.output
    assert cluster.patched == []


def test_a_job_deleted_while_watched_is_said_to_be():
    cluster = FakeCluster(training(1000, 22.0))
    cluster.script = [training(1000, 22.0), None]

    result = run(cluster, "watch", "cartpole")

    assert result.exit_code == Exit.NO
    assert "cartpole has been deleted" in result.stderr


def test_status_lists_jobs_in_80_columns():
    cluster = FakeCluster(training(12_345_678, 123.4), job(name="a-name-of-twenty-chars"))

    result = run(cluster, "status")

    assert result.exit_code == Exit.OK
    assert "Progressing" in result.output
    assert "12.3M" in result.output
    assert all(len(line.rstrip()) <= 80 for line in result.output.splitlines())


def test_a_wide_list_is_not_cut():
    cluster = FakeCluster(training(1000, 22.0, device="CPU", attempt=2))

    told = run(cluster, "status", "-o", "wide").output

    assert "…" not in told
    assert "Checkpoint" in told


def test_status_of_one_job_shows_conditions_and_failures():
    result = run(FakeCluster(FAILED), "status", "cartpole")

    assert result.exit_code == Exit.OK
    assert "Failed" in result.output
    assert "final" in result.output
    assert "no environment CartPol-v1" in result.output


def test_what_the_cluster_says_is_text_and_no_markup():
    broken = job(condition("Failed", "the trainer said [/bold] and [red]"))

    assert "[/bold] and [red]" in run(FakeCluster(broken), "status", "cartpole").output


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_status_as_data_is_the_object_itself(form: str, load: Any):
    cluster = FakeCluster(SUCCEEDED)

    assert load(run(cluster, "status", "cartpole", "-o", form).stdout) == SUCCEEDED
    assert load(run(cluster, "status", "-o", form).stdout)["items"] == [SUCCEEDED]


def test_status_of_an_unknown_job_names_those_there_are():
    result = run(FakeCluster(SUCCEEDED), "status", "cartpol")

    assert result.exit_code == Exit.NO
    assert "no RLTrainingJob cartpol in namespace default: there are cartpole" in result.stderr


def test_checkpoints_can_be_copied_from_the_terminal_and_read_as_json():
    cluster = FakeCluster(SUCCEEDED)

    assert SAVED["uri"] in run(cluster, "checkpoints", "cartpole").output
    shown = json.loads(run(cluster, "checkpoints", "cartpole", "-o", "json").stdout)
    assert shown == {"latest": SAVED, "best": SAVED}


@pytest.mark.parametrize(("command", "wanted"), [("suspend", True), ("resume", False)])
def test_suspend_and_resume_change_one_field(command: str, wanted: bool):
    running = training(1000, 22.0)
    running["spec"]["suspend"] = not wanted
    cluster = FakeCluster(running)

    result = run(cluster, command, "cartpole")

    assert result.exit_code == Exit.OK
    assert cluster.patched == [("cartpole", {"spec": {"suspend": wanted}})]


def test_a_job_that_has_ended_is_not_suspended():
    cluster = FakeCluster(SUCCEEDED)

    result = run(cluster, "suspend", "cartpole")

    assert result.exit_code == Exit.NO
    assert cluster.patched == []


def test_logs_are_of_the_trainer_or_of_the_workers_with_their_names():
    cluster = FakeCluster(training(1000, 22.0))
    cluster.log_lines = [("w-0", "hello"), ("w-1", "hi")]

    result = run(cluster, "logs", "cartpole", "--workers")
    run(cluster, "logs", "cartpole")

    assert result.output.splitlines() == ["w-0: hello", "w-1: hi"]
    assert cluster.selectors == [
        "ratchet.dev/job=cartpole,ratchet.dev/component=rollouts",
        "ratchet.dev/job=cartpole,ratchet.dev/component=trainer",
    ]


def test_logs_without_a_pod_say_so():
    result = run(FakeCluster(training(1000, 22.0)), "logs", "cartpole")

    assert result.exit_code == Exit.NO
    assert "no pod of its trainer" in result.stderr


def test_flags_say_which_cluster_and_namespace():
    cluster = FakeCluster(SUCCEEDED)

    run(cluster, "status", "-n", "research", "--context", "gpu", "--kubeconfig", "/home/me/config")

    assert cluster.targets == [Target("research", "gpu", "/home/me/config")]


def test_an_unreachable_cluster_is_a_sentence_and_69():
    class Unreachable(FakeCluster):
        def objects(self, kind: Kind, everywhere: bool = False) -> list[Resource]:
            raise CommandError("the API server does not answer", Exit.UNAVAILABLE)

    result = run(Unreachable(), "status")

    assert result.exit_code == Exit.UNAVAILABLE
    assert result.stderr == "error: the API server does not answer\n"


def test_without_a_kubeconfig_the_real_connection_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    result = CliRunner().invoke(app, ["status"])

    assert result.exit_code == Exit.UNAVAILABLE
    assert "set KUBECONFIG" in result.stderr


def test_a_server_that_refuses_the_connection_is_a_sentence_and_69(tmp_path: Path):
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))

    result = CliRunner().invoke(app, ["status", "--kubeconfig", str(path)])

    assert result.exit_code == Exit.UNAVAILABLE
    assert "http://127.0.0.1:1 does not answer" in result.stderr
    assert "Traceback" not in result.output


def test_the_plain_watch_is_silent_between_small_changes():
    cluster = FakeCluster(training(0, 0.0))
    cluster.script = [training(steps, 1.0) for steps in range(1000, 2000)] + [SUCCEEDED]

    result = run(cluster, "watch", "cartpole")

    assert result.output.count("steps/s 4,321") < 10


def test_help_documents_the_exit_codes():
    told = " ".join(CliRunner().invoke(app, ["train", "--help"]).output.split())

    assert "69 no cluster reached" in told


def test_times_are_relative_to_now():
    then = (datetime.now(UTC) - timedelta(hours=2, minutes=10)).strftime("%Y-%m-%dT%H:%M:%SZ")
    old = job()
    old["metadata"]["creationTimestamp"] = then

    assert "2h10m" in run(FakeCluster(old), "status").output
