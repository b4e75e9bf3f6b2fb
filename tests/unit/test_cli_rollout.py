"""`ratchet rollout` against recorded states: what it shows, orders and refuses, and with which exit code."""

import copy
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import rolloutstates as states
from rich.console import Console
from rolloutstates import NEW, OLD, Resource, deployment, ordered
from typer.testing import CliRunner

from ratchet.api.v1alpha1.kinds import POLICY_DEPLOYMENT, Kind
from ratchet.cli.cluster import Target
from ratchet.cli.main import app
from ratchet.cli.outcome import Exit
from ratchet.cli.rollout import view
from ratchet.cli.rollout.follow import follow
from ratchet.cli.rollout.seen import left, read, steps
from ratchet.cli.words import instant

NOW = instant(states.NOW)
assert NOW is not None
WATCH = ["status", "cartpole", "--watch"]


class Recorded:
    """A cluster of one PolicyDeployment, and what a watch of it sees; an order is taken as `after` says."""

    def __init__(self, now: Resource | None, *script: Resource | type[BaseException] | None) -> None:
        self.namespace = "default"
        self.now = now
        self.script = list(script)
        self.orders: list[str] = []
        self.after: Resource | None = None
        self.limits: list[float | None] = []
        self.target: Target | None = None

    def connect(self, target: Target) -> "Recorded":
        self.target = target
        return self

    def get(self, kind: Kind, name: str) -> Resource | None:
        is_it = kind is POLICY_DEPLOYMENT and name == "cartpole"
        return self.now if is_it else None

    def objects(self, kind: Kind, everywhere: bool = False) -> list[Resource]:
        return [self.now] if self.now and kind is POLICY_DEPLOYMENT else []

    def patch(self, kind: Kind, name: str, change: Resource) -> Resource:
        assert set(change) == {"metadata"}
        assert kind is POLICY_DEPLOYMENT
        self.orders.append(change["metadata"]["annotations"]["ratchet.dev/rollout"])
        return change

    def watch(self, kind: Kind, name: str, limit: float | None = None) -> Iterator[Resource | None]:
        self.limits.append(limit)
        if self.orders and self.after is not None:
            yield self.now
            taken = copy.deepcopy(self.after)
            taken["status"]["command"] = self.orders[-1]
            yield taken
        for step in self.script:
            if isinstance(step, type):
                raise step
            yield step


def run(cluster: Recorded, *arguments: str) -> Any:
    result = CliRunner().invoke(app, ["rollout", *arguments], obj=cluster.connect)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def shown(resource: Resource, width: int = 80) -> str:
    assert NOW is not None
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(view.screen(read(resource), NOW, width), highlight=False)
    return captured.get()


@pytest.mark.parametrize("width", [50, 72, 80, 120])
@pytest.mark.parametrize("resource", states.LEGAL, ids=lambda one: read(one).reason)
def test_every_state_fits_the_terminal(resource: Resource, width: int):
    lines = shown(resource, width).splitlines()

    assert all(len(line.rstrip()) <= width for line in lines)
    assert lines[0].startswith("cartpole · ")
    assert len(lines) <= 30


def test_a_stage_shows_arms_guards_time_left_and_lineage():
    told = shown(states.STAGE_2)

    for words in (
        "cartpole · Watching · canary · 18s left of this step",
        "surge ✓ → 5% ✓ → 25% ● → 50% → 100% → bake",
        "stable  999999999999  99999999     75%   2/2   37.5   40,000",
        "canary  aaaaaaaaaaaa  aaaaaaaa     25%   1/1   12.5  120,000",
        "errorRate  waiting  0.556%  0.494%  180 / 1620  0x to 17x  ≤ 1.5x   0.19 / 100",
        "errorRate: 180 of 500 samples",
        "nan        pass          0",
        "canary   cartpole        1  cccccccccccc   000000120000-1-40  777777777777",
    ):
        assert words in told


def test_a_narrow_terminal_leaves_out_whole_columns_and_cuts_no_figure():
    assert "0x to 17x  ≤ 1.5x" in shown(states.STAGE_2, 80)
    assert "0.494%  180 / 1620  0x to 17x" in shown(states.STAGE_2, 72)
    assert "0.494%  0x to 17x  0.19 / 100" in shown(states.STAGE_2, 60)
    assert "Odds" not in shown(states.STAGE_2, 40)


def test_what_nobody_knows_has_no_column():
    resource = copy.deepcopy(states.STAGE_2)
    for name in ("stable", "canary"):
        del resource["status"][name]["lineage"]["attempt"]
        del resource["status"][name]["requestsPerSecond"]

    told = shown(resource)

    assert "Attempt" not in told
    assert "Req/s" not in told
    assert "cartpole  cccccccccccc" in told


@pytest.mark.parametrize(
    ("resource", "words"),
    [
        (states.PENDING, "The operator has not looked at it yet."),
        (states.NO_POLICY, "No policy serves yet."),
        (states.SURGING, "9m48s until it gives up"),
        (states.PAUSED, "go on: ratchet rollout resume cartpole"),
        (states.AWAITING, "take it back: ratchet rollout abort cartpole"),
        (states.FAILING, "fail         5%  0.494%"),
        (states.QUARANTINED, "try it again: ratchet rollout retry cartpole"),
        (states.BAKING, "100% ✓ → bake ●"),
        (states.PROMOTED, "999999999999 served before; go back to it: ratchet rollout undo cartpole"),
        (states.SHADOWING, "surge ✓ → 100% copies ● → 100% → bake"),
        (states.FIRST, "surge ● → 100% → bake"),
    ],
    ids=lambda one: "" if isinstance(one, str) else read(one).reason,
)
def test_each_state_says_what_matters_in_it(resource: Resource, words: str):
    assert words in shown(resource)


def test_an_ab_test_reports_the_difference_with_its_interval_and_how_sure_it_is():
    told = " ".join(shown(states.AB_BETTER).split())

    assert (
        "Difference of mean returns: +11.9 (+3.2 to +20.6, each bound ever wrong with at most 1%) over 120 "
        "and 120 episodes: the trial is better" in told
    )


@pytest.mark.parametrize(
    ("low", "high", "conclusion"),
    [(-5, 9, "no difference is shown"), (-20, -0.1, "the trial is worse"), (None, -1, "the trial is worse")],
)
def test_an_ab_test_concludes_only_what_its_interval_says(low: Any, high: float, conclusion: str):
    resource = copy.deepcopy(states.AB_BETTER)
    decision = resource["status"]["decisions"][0]
    decision.update(high=high, low=low)
    if low is None:
        del decision["low"]

    assert f"episodes: {conclusion}" in " ".join(shown(resource).split())


def test_an_ab_test_without_returns_says_so():
    resource = copy.deepcopy(states.AB_BETTER)
    resource["status"]["decisions"] = []

    assert "Difference of mean returns: no returns of both arms yet" in shown(resource)


def test_no_clock_is_shown_while_paused_or_once_it_has_run_out():
    assert NOW is not None
    assert left(read(states.PAUSED), NOW) is None
    assert left(read(states.STAGE_2), NOW + timedelta(seconds=18)) is None
    assert left(read(states.STAGE_2), NOW) == ("left of this step", 18.0)


def test_the_first_policy_has_no_stages_to_pass():
    assert [step.label for step in steps(read(states.FIRST))] == ["surge", "100%", "bake"]


def test_status_as_data_is_the_object_itself_and_history_the_list():
    cluster = Recorded(states.ROLLED_BACK)

    assert json.loads(run(cluster, "status", "cartpole", "-o", "json").stdout) == states.ROLLED_BACK
    past = json.loads(run(cluster, "history", "cartpole", "-o", "json").stdout)
    assert [(one["digest"], one["outcome"]) for one in past] == [(OLD, "Promoted"), (NEW, "Failed")]


def test_history_says_why_and_what_is_kept_out():
    told = run(Recorded(states.ROLLED_BACK), "history", "cartpole").stdout

    assert "999999999999  Promoted" in told
    assert "aaaaaaaaaaaa  Failed" in told
    assert "1.78x to 67.9x" in " ".join(told.split())
    assert "Quarantined." in " ".join(told.split())
    assert "999999999999 serves." in told
    assert run(Recorded(states.PENDING), "history", "cartpole").stdout == "no trial yet\n"


def test_a_list_has_a_row_for_each():
    told = run(Recorded(states.STAGE_2), "status").stdout

    assert told.splitlines()[1].split()[:6] == [
        "cartpole", "Watching", "999999999999", "0", "aaaaaaaaaaaa", "25%",
    ]  # fmt: skip


def test_an_unknown_name_gets_those_there_are_and_a_job_command_says_whose_name_it_is():
    missing = run(Recorded(states.SERVES), "status", "cartpol")
    job = CliRunner().invoke(app, ["status", "cartpole"], obj=Recorded(states.SERVES).connect)

    assert missing.exit_code == Exit.NO
    assert "no PolicyDeployment cartpol in namespace default: there are cartpole" in missing.stderr
    assert job.exit_code == Exit.NO
    assert (
        "cartpole is a PolicyDeployment and no RLTrainingJob: ratchet rollout status cartpole" in job.stderr
    )


def test_a_watch_to_the_promotion_ends_with_0_and_says_each_change_once():
    cluster = Recorded(
        states.SERVES, states.SURGING, states.STAGE_2, states.STAGE_2, states.BAKING, states.PROMOTED
    )

    result = run(cluster, *WATCH)

    assert result.exit_code == Exit.OK
    lines = [line[10:] for line in result.stdout.splitlines()]
    assert [line.split()[0] for line in lines[:-1]] == ["Surging", "Watching", "Baking", "Promoted"]
    assert "waiting: errorRate  pass: nan" in lines[1]
    assert result.stdout.endswith("cartpole promoted: aaaaaaaaaaaa serves everybody\n")


def test_a_watch_to_the_rollback_ends_with_1_and_the_reason():
    result = run(Recorded(states.SERVES, states.STAGE_2, states.FAILING, states.ROLLED_BACK), *WATCH)

    assert result.exit_code == Exit.NO
    assert "rolled back: 5% of 180 canary answers are errors" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("resource", "code"),
    [(states.SERVES, Exit.OK), (states.ASLEEP, Exit.OK), (states.QUARANTINED, Exit.NO)],
    ids=["serves", "sleeps", "stuck"],
)
def test_a_watch_of_what_has_ended_ends_at_once(resource: Resource, code: Exit):
    assert run(Recorded(resource, resource), *WATCH).exit_code == code


def test_a_watch_waits_for_the_operator_to_see_a_new_spec_and_an_order():
    newer = copy.deepcopy(states.SERVES)
    newer["metadata"]["generation"] = 2
    asked = ordered(states.SERVES, "retry/1")

    result = run(Recorded(states.SERVES, newer, asked, states.STAGE_2, states.PROMOTED), *WATCH)

    assert "promoted" in result.stdout.splitlines()[-1]


def test_a_watch_goes_on_with_what_superseded_the_trial():
    superseded = deployment(
        "RolledBack", "The source means another policy now.", **states.SERVING,
        history=[states.PastTrial(digest=NEW, outcome="Superseded", time=states.NOW)],
    )  # fmt: skip

    result = run(Recorded(states.SERVES, states.STAGE_2, superseded, states.FIRST, states.PROMOTED), *WATCH)

    assert result.exit_code == Exit.OK


def test_a_watch_that_runs_out_of_time_says_where_it_stands_and_ends_with_124():
    cluster = Recorded(states.SERVES, states.STAGE_2)

    result = run(cluster, *WATCH, "--timeout", "1m30s")

    assert (result.exit_code, cluster.limits) == (Exit.TIMED_OUT, [90])
    assert "timed out waiting for cartpole: Watching: 18 s" in result.stderr


def test_a_watch_can_be_left_and_ends_with_the_object():
    stopped = run(Recorded(states.SERVES, states.STAGE_2, KeyboardInterrupt), *WATCH)
    gone = run(Recorded(states.SERVES, states.STAGE_2, None), *WATCH)

    assert (stopped.exit_code, gone.exit_code) == (Exit.INTERRUPTED, Exit.NO)
    assert "cartpole goes on" in stopped.stdout
    assert "cartpole has been deleted" in gone.stderr


@pytest.mark.parametrize(
    "arguments", [[*WATCH, "-o", "json"], ["status", "--watch"], [*WATCH, "--timeout", "5"]]
)
def test_what_a_watch_can_not_do_is_wrong_usage(arguments: list[str]):
    assert run(Recorded(states.SERVES), *arguments).exit_code == Exit.USAGE


@pytest.mark.parametrize("no_color", [True, False])
def test_a_terminal_gets_the_screen_and_colour_unless_it_asks_for_none(
    no_color: bool, monkeypatch: pytest.MonkeyPatch
):
    assert NOW is not None
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1") if no_color else monkeypatch.delenv("NO_COLOR", raising=False)
    console = Console(force_terminal=True, width=80)
    seen = iter([states.STAGE_2, states.PROMOTED])
    with console.capture() as captured:
        ended = follow("cartpole", seen, console, lambda: NOW)

    assert ended.code is Exit.OK
    assert ("\x1b[32m" in captured.get()) is not no_color
    assert "cartpole" in captured.get()


MAKES_SENSE = {
    "promote": [states.SURGING, states.STAGE_2, states.PAUSED, states.AWAITING, states.FIRST],
    "pause": [states.SURGING, states.STAGE_2, states.AWAITING],
    "resume": [states.PAUSED, states.AWAITING, states.AB_BETTER],
    "abort": [states.SURGING, states.STAGE_2, states.BAKING],
    "undo": [states.SERVES, states.PROMOTED, states.STAGE_2, states.BAKING, states.QUARANTINED],
    "retry": [states.QUARANTINED, states.ROLLED_BACK],
}
MAKES_NONE = [
    ("promote", states.SERVES, "nothing on trial, 999999999999 serves: there is nothing to promote"),
    ("promote", states.QUARANTINED, "to try aaaaaaaaaaaa again: ratchet rollout retry cartpole"),
    ("promote", states.BAKING, "is being promoted already"),
    ("promote", states.PENDING, "the operator has not looked at cartpole yet"),
    ("pause", states.SERVES, "there is nothing to pause"),
    ("pause", states.PAUSED, "cartpole is paused already"),
    ("pause", states.BAKING, "to take it back: ratchet rollout undo cartpole"),
    ("resume", states.STAGE_2, "is not paused and waits for no approval"),
    ("resume", states.SERVES, "there is nothing to resume"),
    ("abort", states.SERVES, "to go back to the policy before: ratchet rollout undo cartpole"),
    ("abort", states.FAILING, "is being rolled back already"),
    ("abort", states.FIRST, "is the first policy of cartpole: there is none to go back to"),
    ("undo", states.deployment("Serving", "x", stable=states.arm(OLD, 100)), "none did before it"),
    ("undo", states.FIRST, "there is none to go back to"),
    ("retry", states.SERVES, "which is what the source means: there is nothing to retry"),
    ("retry", states.STAGE_2, "is on trial now: there is nothing to retry"),
]


@pytest.mark.parametrize(
    ("verb", "resource"), [(verb, resource) for verb, those in MAKES_SENSE.items() for resource in those]
)
def test_an_order_is_written_once_and_its_effect_awaited(verb: str, resource: Resource):
    cluster = Recorded(resource)
    cluster.after = states.FAILING

    result = run(cluster, verb, "cartpole")

    assert result.exit_code == Exit.OK, result.stderr
    (order,) = cluster.orders
    assert order.startswith(f"{verb}/")
    assert len(order.partition("/")[2]) == 8
    assert f"cartpole: {verb} taken. RollingBack: 5% of 180" in result.stdout


@pytest.mark.parametrize(("verb", "resource", "why"), MAKES_NONE)
def test_an_order_that_makes_no_sense_now_is_refused_with_what_would(verb: str, resource: Resource, why: str):
    cluster = Recorded(resource)

    result = run(cluster, verb, "cartpole")

    assert (result.exit_code, cluster.orders) == (Exit.NO, [])
    assert why in result.stderr


def test_what_to_type_next_reaches_the_same_cluster():
    cluster = Recorded(states.STAGE_2)
    cluster.after = states.FAILING

    told = run(cluster, "abort", "cartpole", "-n", "research", "--context", "gpu").stdout

    assert "ratchet rollout status cartpole --watch --namespace research --context gpu" in told


def test_nobody_is_advised_to_go_back_to_what_is_quarantined():
    resource = copy.deepcopy(states.ROLLED_BACK)
    assert "rollout undo" in shown(resource)

    resource["status"]["previous"] = NEW
    assert "rollout undo" not in shown(resource)


def test_what_waits_for_a_persons_word_is_begun_by_promote():
    source = {**states.JOB, "trainingJob": {**states.JOB["trainingJob"], "follow": "OnApproval"}}
    waiting = deployment(
        "AwaitingApproval", "aaaaaaaaaaaa waits.", spec={"source": source},
        **states.SERVING,
    )  # fmt: skip
    cluster = Recorded(waiting)
    cluster.after = states.SURGING

    assert "begin: ratchet rollout promote cartpole" in shown(waiting)
    assert run(cluster, "promote", "cartpole").exit_code == Exit.OK


def test_an_order_that_nobody_takes_says_that_it_stays_written():
    cluster = Recorded(states.STAGE_2, states.STAGE_2)

    result = run(cluster, "abort", "cartpole")

    assert result.exit_code == Exit.TIMED_OUT
    assert len(cluster.orders) == 1
    assert "abort is written, and the operator has not taken it" in result.stderr


def test_a_paused_manifest_is_said_and_not_resumed_by_an_order():
    paused = copy.deepcopy(states.SERVES)
    paused["spec"]["paused"] = True

    assert "The manifest says paused: true" in shown(paused)
    for verb, why in (("resume", "until it says paused: false"), ("undo", "no trial begins while")):
        assert why in run(Recorded(paused), verb, "cartpole").stderr


def test_verdicts_that_acted_before_do_not_stand_beside_those_of_now():
    resource = copy.deepcopy(states.STAGE_2)
    acted = states.nan(0, 600).to_wire() | {"action": "Advance"}
    resource["status"]["decisions"].insert(0, acted)

    assert [record.guard for record in read(resource).decisions] == ["errorRate", "nan"]
    assert read(resource).decisions[1].canary_samples == 180


def test_a_watch_waits_until_enough_pods_are_there():
    few = copy.deepcopy(states.SERVES)
    lacking = states.condition("Degraded", "TooFewServers", "1 of 2 servers are ready.")
    few["status"]["conditions"].append(lacking.to_wire())

    result = run(Recorded(few, few, states.SERVES), *WATCH)

    assert "Degraded is True: 1 of 2 servers are ready." in shown(few)
    assert result.exit_code == Exit.OK
    assert run(Recorded(few, few), *WATCH).exit_code == Exit.TIMED_OUT


def test_a_status_of_a_newer_release_is_read_as_far_as_it_is_known():
    newer = copy.deepcopy(states.STAGE_2)
    newer["status"]["trial"]["mood"] = "good"
    newer["spec"]["surprise"] = 1
    assert "25% ●" in shown(newer)

    newer["status"]["trial"]["phase"] = "Hover"
    result = run(Recorded(newer), "status", "cartpole")
    assert result.exit_code == Exit.NO
    assert "another release of Ratchet than this command's (trial.phase)" in result.stderr


def test_flags_say_which_cluster_and_namespace():
    cluster = Recorded(states.SERVES)

    run(cluster, "history", "cartpole", "-n", "research", "--context", "gpu")

    assert cluster.target == Target("research", "gpu", None)
