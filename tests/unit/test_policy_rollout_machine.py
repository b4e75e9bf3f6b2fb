"""Single steps of a rollout: what each situation leads to, one reason at a time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from ratchet_operator.rollout.machine import step
from ratchet_operator.rollout.values import (
    ArmSeen,
    Command,
    GuardPolicy,
    Rollout,
    Rules,
    Seen,
    Split,
    Stage,
    Trial,
    Wanted,
)

from ratchet.evidence import Decision, Verdict, moot

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
EARLIER = "2026-01-01T11:59:00Z"
OLD, NEW, THIRD = "sha256:old", "sha256:new", "sha256:third"
RULES = Rules(stages=(Stage(10, seconds=30), Stage(50, seconds=30)), deadline_seconds=600)
READY = {OLD: ArmSeen(10, 10), NEW: ArmSeen(10, 10)}


def on_trial(**changes: object) -> Rollout:
    trial = Trial(digest=NEW, phase="Stage", since=EARLIER, weight=10).model_copy(update=changes)
    return Rollout(stable=OLD, trial=trial, attempts={NEW: 1})


def taken(state: Rollout, seen: Seen, rules: Rules = RULES, now: datetime = NOW) -> Wanted:
    return step(rules, state, seen, now)


def seen(split: Split | None = None, **changes: object) -> Seen:
    routed, traffic = split or Split({}), {} if split else None
    base = {"source": NEW, "arms": READY, "demand": 10, "routed": routed, "split": split, "traffic": traffic}
    return Seen(**{**base, **changes})  # pyright: ignore[reportArgumentType]


def verdict(value: Verdict, n: int = 1_000) -> Decision:
    return Decision("errors", value, "why", canary_n=n)


TENTH = Split({OLD: 90, NEW: 10})


def test_a_stage_is_passed_when_its_time_is_over_its_split_is_followed_and_every_guard_passes():
    wanted = taken(on_trial(), seen(TENTH, decisions=(verdict(Verdict.PASS),)))
    assert wanted.state.trial is not None
    assert (wanted.state.trial.stage, wanted.reason) == (1, "StagePassed")
    assert wanted.split == TENTH


def test_a_guard_that_has_nothing_to_compare_with_stands_in_nobodys_way():
    for late in (timedelta(0), timedelta(days=1)):
        seen_now = seen(TENTH, decisions=(verdict(Verdict.PASS), moot("drift", "there was no evaluation")))
        rules = replace(RULES, policies={"drift": GuardPolicy(on_not_enough="RollBack")})
        assert taken(on_trial(), seen_now, rules, NOW + late).reason == "StagePassed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split": Split({OLD: 100})}, "Routing"),
        ({"split": None, "traffic": None}, "Routing"),
        ({"arms": {OLD: ArmSeen(10, 10), NEW: ArmSeen(1, 0)}}, "Surging"),
        ({"decisions": (verdict(Verdict.NOT_ENOUGH_EVIDENCE),)}, "NotEnoughEvidence"),
        ({"decisions": (verdict(Verdict.SOURCE_DOWN, 0),)}, "SourceDown"),
    ],
)
def test_a_stage_waits_for_each_of_them(change: dict[str, object], reason: str):
    wanted = taken(on_trial(), seen(**{"split": TENTH, **change}))
    assert wanted.reason == reason
    assert wanted.state.trial is not None
    assert wanted.state.trial.stage == 0


def test_the_weight_is_raised_only_once_the_pods_for_it_are_ready():
    few = {OLD: ArmSeen(10, 10), NEW: ArmSeen(5, 4)}
    waiting = taken(on_trial(stage=1), seen(TENTH, arms=few))
    assert (waiting.replicas[NEW], waiting.split) == (5, TENTH)
    raised = taken(on_trial(stage=1), seen(TENTH))
    assert raised.split == Split({OLD: 50, NEW: 50})


BEFORE_EACH_GATE = {
    "Stage": (on_trial(), TENTH),
    "Promote": (on_trial(phase="Promote"), TENTH),
    "Bake": (on_trial(phase="Bake", weight=100), Split({NEW: 100})),
}
"""A trial that goes on at the next step, and the split that its pods follow."""
DOUBTS = {Verdict.FAIL: "on_fail", Verdict.SOURCE_DOWN: "on_source_down"}
LATER = NOW + timedelta(hours=1)


@pytest.mark.parametrize("phase", BEFORE_EACH_GATE)
@pytest.mark.parametrize("found", DOUBTS)
def test_at_each_gate_a_guards_policy_says_what_its_doubt_leads_to(phase: str, found: Verdict):
    state, split = BEFORE_EACH_GATE[phase]
    doubtful = seen(split, decisions=(verdict(found, 0),))

    def decided(policy: str) -> Wanted:
        rules = replace(RULES, policies={"errors": GuardPolicy(**{DOUBTS[found]: policy})})
        return taken(state, doubtful, rules, LATER)

    held = decided("Hold")
    assert (held.reason, held.state.trial) == (found.value, state.trial)
    assert (held.split, held.replicas) == (split, {OLD: 10, NEW: 10 if phase != "Stage" else 1})
    onward = decided("Advance")
    assert onward.reason in ("StagePassed", "WeightRaised", "Promoted")
    assert "why" in onward.message or phase == "Promote"
    back = decided("RollBack").state.trial
    assert back is not None
    assert (back.phase, back.outcome, back.why) == ("RollBack", "Failed", "why")


@pytest.mark.parametrize("phase", ["Promote", "Bake"])
def test_past_the_stages_promote_ends_a_doubt_and_no_more_evidence_is_asked_for(phase: str):
    state, split = BEFORE_EACH_GATE[phase]
    down = seen(split, decisions=(verdict(Verdict.SOURCE_DOWN, 0),), command=Command("1", "promote"))
    assert taken(state, down, now=LATER).reason in ("WeightRaised", "Promoted")
    for samples in (0, 9):
        little = seen(split, decisions=(verdict(Verdict.NOT_ENOUGH_EVIDENCE, samples),))
        assert taken(state, little, now=LATER).reason in ("WeightRaised", "Promoted")


def test_a_source_that_is_down_does_not_keep_the_first_policy_of_all_from_serving():
    first = Rollout(trial=Trial(digest=NEW, phase="Promote", since=EARLIER))
    down = seen(decisions=(verdict(Verdict.SOURCE_DOWN, 0),))
    assert taken(first, down).split.weights == {NEW: 100}


@pytest.mark.parametrize(
    ("change", "weight"),
    [
        ({"split": None, "traffic": None}, 0),
        ({"split": Split({OLD: 100}, evicted=frozenset({NEW})), "traffic": {NEW: 1}}, 0),
        ({"split": Split({NEW: 100}), "arms": {OLD: ArmSeen(10, 0), NEW: ArmSeen(10, 10)}}, 100),
    ],
)
def test_a_rollback_that_takes_too_long_says_so_and_is_not_given_up(change: dict[str, object], weight: int):
    back = on_trial(phase="RollBack", weight=weight, outcome="Failed", why="errors")
    stuck = seen(**{"split": None, **change})
    assert taken(back, stuck).reason == "RollingBack"
    late = taken(back, stuck, now=NOW + timedelta(days=3))
    assert (late.reason, late.state.trial) == ("ProgressDeadlineExceeded", back.trial)
    assert late.replicas[NEW] == 10


@pytest.mark.parametrize("phase", ["Surge", "Stage", "Promote", "Bake"])
def test_a_phase_that_lacks_pods_for_too_long_is_taken_back(phase: str):
    weight = 100 if phase == "Bake" else 10 if phase == "Stage" else 0
    lacking = seen(Split({OLD: 100}), arms={OLD: ArmSeen(10, 10), NEW: ArmSeen(10, 0)})
    waiting = taken(on_trial(phase=phase, weight=weight), lacking)
    assert waiting.reason == "Surging"
    late = taken(waiting.state, lacking, now=NOW + timedelta(seconds=RULES.deadline_seconds + 1)).state.trial
    assert late is not None
    assert (late.phase, late.outcome) == ("RollBack", "TimedOut")


@pytest.mark.parametrize("phase", ["Surge", "Stage", "Promote", "Bake"])
def test_a_failed_guard_takes_the_trial_back_in_every_phase(phase: str):
    wanted = taken(on_trial(phase=phase), seen(TENTH, decisions=(verdict(Verdict.FAIL),)))
    assert wanted.state.trial is not None
    assert wanted.state.trial.phase == "RollBack"
    assert wanted.split.weights == {OLD: 100}
    assert wanted.split.evicted == {NEW}
    assert wanted.replicas == {OLD: 10, NEW: 10}
    assert [event.type for event in wanted.occurrences] == ["Warning"]


def test_what_was_rolled_back_is_scaled_down_only_when_nobody_is_seen_to_go_there():
    back = on_trial(phase="RollBack", weight=0, outcome="Failed", why="errors")
    left = Split({OLD: 100}, evicted=frozenset({NEW}))
    for not_yet in (seen(TENTH), seen(left, traffic={NEW: 1}), seen(None)):
        assert taken(back, not_yet).replicas[NEW] == 10
    done = taken(back, seen(left))
    assert done.replicas[NEW] == 0
    assert done.state.quarantined == {NEW: "errors"}
    after = taken(done.state, seen(left), now=NOW + timedelta(hours=1))
    assert (after.reason, after.state.trial) == ("Quarantined", None)


def test_without_traffic_nothing_is_promoted_and_nothing_rolled_back_however_long_it_takes():
    rules = Rules(stages=RULES.stages, policies={"errors": GuardPolicy(on_not_enough="RollBack")})
    silent = seen(TENTH, decisions=(verdict(Verdict.NOT_ENOUGH_EVIDENCE, 0),))
    held = taken(on_trial(), silent, rules, NOW + timedelta(days=3))
    assert held.state.trial is not None
    assert (held.state.trial.phase, held.state.trial.stage) == ("Stage", 0)
    telling = seen(TENTH, decisions=(verdict(Verdict.NOT_ENOUGH_EVIDENCE, 9),))
    late = taken(on_trial(), telling, rules, NOW + timedelta(days=3))
    assert late.state.trial is not None
    assert late.state.trial.phase == "RollBack"


def test_a_third_version_in_the_middle_takes_the_second_back_without_blame_or_hurry():
    wanted = taken(on_trial(), seen(TENTH, source=THIRD))
    trial = wanted.state.trial
    assert trial is not None
    assert (trial.phase, trial.outcome) == ("RollBack", "Superseded")
    assert not wanted.split.evicted, "its episodes may end where they began"
    gone = taken(wanted.state, seen(wanted.split, source=THIRD))
    assert gone.state.trial is None
    assert not gone.state.quarantined
    begun = taken(gone.state, seen(gone.split, source=THIRD))
    assert begun.state.trial is not None
    assert begun.state.trial.digest == THIRD


def test_a_third_version_while_the_second_bakes_waits_its_turn():
    everybody = Split({NEW: 100})
    wanted = taken(on_trial(phase="Bake", weight=100), seen(everybody, source=THIRD))
    assert wanted.reason == "Baking"
    assert wanted.replicas[OLD] == 10


def test_a_canary_that_never_gets_ready_is_tried_as_often_as_allowed_and_no_more():
    state, now = Rollout(stable=OLD), NOW
    for _ in range(2 * RULES.attempts + 1):
        for seconds in (1, 1, 700, 1, 1, 100):
            now += timedelta(seconds=seconds)
            split = taken(state, seen()).split
            nothing = {OLD: ArmSeen(10, 10), NEW: ArmSeen(1, 0)}
            state = taken(state, seen(split, arms=nothing), now=now).state
    assert [past.outcome for past in state.history] == ["TimedOut"] * RULES.attempts
    assert taken(state, seen(), now=now).reason == "AttemptsExhausted"
    again = taken(state, seen(command=Command("1", "retry")), now=now)
    assert again.state.trial is not None


def test_the_first_policy_of_all_serves_once_it_is_ready_and_waits_for_ever_until_then():
    state = taken(Rollout(), seen()).state
    late = taken(state, seen(arms={}), now=NOW + timedelta(hours=1))
    late = taken(late.state, seen(arms={}), now=NOW + timedelta(hours=2))
    assert (late.reason, late.split.weights) == ("ProgressDeadlineExceeded", {})
    for _ in range(3):
        wanted = taken(state, seen())
        state = wanted.state
    assert wanted.split.weights == {NEW: 100}
    for _ in range(2):
        state = taken(state, seen(wanted.split)).state
    assert state.stable == NEW


def test_undo_goes_back_to_what_served_before_until_the_source_says_something_else():
    served = Rollout(stable=NEW, previous=OLD)
    wanted = taken(served, seen(command=Command("1", "undo")))
    assert wanted.state.trial is not None
    assert (wanted.state.trial.digest, wanted.state.trial.skip) == (OLD, True)
    back = Rollout(stable=OLD, previous=NEW, pin=wanted.state.pin, command="1")
    assert taken(back, seen(command=Command("1", "undo"))).reason == "Serving"
    assert taken(back, seen(source=THIRD)).reason == "TrialStarted"


def test_while_the_spec_is_paused_nothing_begins_and_what_undo_chose_is_not_forgotten():
    rules = replace(RULES, paused=True)
    held = taken(Rollout(stable=OLD), seen(), rules)
    assert (held.reason, held.state.trial) == ("Paused", None)
    asked = taken(Rollout(stable=NEW, previous=OLD), seen(command=Command("1", "undo")), rules)
    assert (asked.reason, asked.state.trial) == ("Paused", None)
    begun = taken(asked.state, seen(command=Command("1", "undo"))).state.trial
    assert begun is not None
    assert begun.digest == OLD
    assert taken(Rollout(), seen(), rules).state.trial is not None


def test_a_command_is_carried_out_once():
    paused = taken(on_trial(), seen(TENTH, command=Command("1", "pause")))
    assert paused.reason == "Paused"
    resumed = taken(paused.state, seen(TENTH, command=Command("2", "resume"))).state
    again = taken(resumed, seen(TENTH, command=Command("2", "resume")))
    assert again.state.command == "2"
    assert again.state.trial is not None
    assert not again.state.trial.paused


def test_promote_skips_the_stages_but_neither_the_capacity_nor_the_guards():
    asked = taken(
        on_trial(), seen(TENTH, command=Command("1", "promote"), arms={**READY, NEW: ArmSeen(1, 1)})
    )
    waiting = taken(asked.state, seen(TENTH, arms={**READY, NEW: ArmSeen(1, 1)}))
    assert (waiting.replicas[NEW], waiting.split) == (10, TENTH)
    failed = taken(asked.state, seen(TENTH, decisions=(verdict(Verdict.FAIL),)))
    assert failed.split.weights == {OLD: 100}


def test_an_arm_that_nobody_remembers_is_drained_before_it_goes():
    stray = {**READY, THIRD: ArmSeen(2, 2)}
    state = Rollout(stable=NEW)
    told = taken(state, seen(Split({NEW: 100}), arms=stray))
    assert told.replicas[THIRD] == 2
    assert taken(state, seen(told.split, arms=stray)).replicas[THIRD] == 0


def test_nobody_is_sent_to_a_canary_whose_pods_are_all_gone():
    gone = {**READY, NEW: ArmSeen(1, 0)}
    assert taken(on_trial(), seen(TENTH, arms=gone)).split.weights == {OLD: 100}
    both_gone = {OLD: ArmSeen(10, 0), NEW: ArmSeen(1, 0)}
    assert taken(on_trial(), seen(TENTH, arms=both_gone)).split == TENTH


def test_a_mirrored_stage_sends_copies_and_no_episode():
    rules = Rules(stages=(Stage(100, mirrored=True, approval=True),))
    wanted = taken(on_trial(weight=0), seen(), rules)
    assert wanted.split == Split({OLD: 100}, mirrored=(NEW, 100))
    passed = taken(on_trial(weight=0), seen(wanted.split), rules)
    assert passed.reason == "AwaitingApproval"


def test_a_weight_that_was_decided_but_not_written_waits_for_the_pods_that_it_needs_now():
    decided = on_trial(stage=1, weight=50)
    lost_some = {OLD: ArmSeen(10, 10), NEW: ArmSeen(5, 4)}
    assert taken(decided, seen(TENTH, arms=lost_some)).split == TENTH
    assert taken(decided, seen(TENTH)).split == Split({OLD: 50, NEW: 50})


def test_a_rollback_that_was_decided_but_not_written_waits_for_a_pod_to_go_back_to():
    decided = on_trial(phase="RollBack", weight=0, outcome="Failed", why="errors")
    nobody = {OLD: ArmSeen(10, 0), NEW: ArmSeen(1, 1)}
    waiting = taken(decided, seen(TENTH, arms=nobody))
    assert (waiting.split, waiting.state.trial) == (TENTH, decided.trial)
    assert waiting.replicas == {OLD: 10, NEW: 1}


def test_what_served_before_stays_until_its_last_episode_ends_but_not_past_the_deadline():
    baked = on_trial(phase="Bake", weight=100)
    going_on = seen(Split({NEW: 100}), traffic={OLD: 1})
    late = NOW + timedelta(seconds=RULES.bake_seconds)
    assert taken(baked, going_on, now=late).reason == "Draining"
    given_up = taken(baked, going_on, now=late + timedelta(seconds=RULES.deadline_seconds))
    assert (given_up.state.stable, given_up.split.evicted) == (NEW, {OLD})
    assert taken(baked, seen(Split({NEW: 100})), now=late).state.stable == NEW


def test_after_a_trial_that_took_too_long_the_next_one_waits_for_the_cooldown_and_no_longer():
    late = on_trial(
        phase="Surge", weight=0, since="2026-01-01T11:00:00Z", waiting_since="2026-01-01T11:00:00Z"
    )
    nothing = {OLD: ArmSeen(10, 10), NEW: ArmSeen(10, 0)}
    back = taken(late, seen(Split({OLD: 100}), arms=nothing))
    over = taken(back.state, seen(back.split, arms=nothing)).state
    assert ([past.outcome for past in over.history], over.trial) == (["TimedOut"], None)
    end = NOW + timedelta(seconds=RULES.cooldown_seconds)

    before = taken(over, seen(), now=end - timedelta(seconds=1))
    assert (before.reason, before.state.trial) == ("CoolingDown", None)
    begun = taken(before.state, seen(), now=end).state
    assert begun.trial is not None
    assert (begun.trial.digest, begun.attempts, begun.cooldown_until) == (NEW, {NEW: 2}, None)
