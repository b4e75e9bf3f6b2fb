"""What a rollout looks like: a screen of one, a list of many, its past. No calls to the cluster from here."""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ratchet.api.v1alpha1.policydeployment import DecisionRecord
from ratchet.cli.rollout import guards
from ratchet.cli.rollout.seen import Seen, left, short, steps
from ratchet.cli.tables import bare_table
from ratchet.cli.words import NONE, number, since, span

MEASURING = Console(width=1_000)
STRATEGIES = {
    "Canary": "canary",
    "BlueGreen": "blue-green",
    "Shadow": "shadow",
    "AB": "A/B test",
    "AllAtOnce": "all at once",
}
LACKING = re.compile(r"^.*; (not enough evidence: )?|, odds of [^;]*$")
OUTCOMES = {"Promoted": "green", "Failed": "red", "TimedOut": "red", "Aborted": "yellow", "Superseded": "dim"}
# What a condition says where all is well; Progressing has a line of its own.
WELL = {"Available": "True", "Degraded": "False"}


def screen(seen: Seen, now: datetime, width: int) -> RenderableType:
    """Show one rollout."""
    status = seen.status
    parts: list[RenderableType] = [*_head(seen, now), "", _arms(seen)]
    if seen.decisions:
        parts += ["", _verdicts(seen.decisions, width), *_reasons(seen.decisions, seen.message)]
    if status.trial is not None and seen.spec.strategy.type == "AB":
        parts += ["", _report(seen.decisions)]
    if made := _lineage(seen):
        parts += ["", made]
    notes = [
        Text(f"Quarantined {short(item.digest)}: {item.message}", "yellow")
        for item in status.quarantined
        if item.message not in seen.message
    ]
    notes += [Text(hint, "dim") for hint in _hints(seen)]
    return Group(*parts, *(["", *notes] if notes else []))


def _head(seen: Seen, now: datetime) -> list[RenderableType]:
    way = steps(seen)
    strategy = STRATEGIES[seen.spec.strategy.type]
    title = Text.assemble((seen.name, "bold"), " · ", (seen.reason, seen.colour), f" · {strategy}")
    if clock := left(seen, now):
        title.append(f" · {span(clock[1])} {clock[0]}")
    lines: list[RenderableType] = [title]
    if way:
        path = Text()
        for step in way:
            path.append(" → " if path else "", "dim")
            mark, style = {"done": (" ✓", "green"), "now": (" ●", "bold"), "ahead": ("", "dim")}[step.state]
            path.append(step.label + mark, style)
        lines.append(path)
    lines.append(Text(seen.message, seen.colour if seen.colour != "cyan" else ""))
    for condition in seen.status.conditions:
        is_odd = condition.status != WELL.get(condition.type, condition.status)
        if is_odd and condition.message and condition.message not in seen.message:
            lines.append(Text(f"{condition.type} is {condition.status}: {condition.message}", "yellow"))
    if seen.spec.paused:
        lines.append(Text("The manifest says paused: true: no trial begins or goes further.", "yellow"))
    if seen.is_leaving:
        lines.append(Text("It is being deleted.", "yellow"))
    return lines


def _arms(seen: Seen) -> RenderableType:
    arms = [
        (name, arm) for name, arm in (("stable", seen.status.stable), ("canary", seen.status.canary)) if arm
    ]
    if not arms:
        return Text("No policy serves yet.")
    rows = [
        {
            "Arm": name,
            "Policy": Text(short(arm.digest), "bold"),
            "Revision": arm.revision or NONE,
            "Weight": f"{arm.weight}%",
            "Pods": Text(f"{arm.ready}/{arm.replicas}", "" if arm.ready >= arm.replicas else "yellow"),
            "Req/s": number(arm.requests_per_second, 1),
            "Steps": number(arm.lineage.steps if arm.lineage else None),
        }
        for name, arm in arms
    ]
    return _table(rows, right=("Weight", "Pods", "Req/s", "Steps"))


def _verdicts(records: list[DecisionRecord], width: int) -> RenderableType:
    found = [guards.row(record) for record in records]
    rows: list[dict[str, str | Text]] = [
        {
            "Guard": row.guard,
            "Verdict": Text(row.verdict, row.colour),
            "Canary": row.canary,
            "Stable": row.stable,
            "n": row.samples,
            "Interval": row.interval,
            "Allowed": row.allowed,
            "Odds": row.odds,
        }
        for row in found
    ]
    right, left_out = ("Canary", "Stable", "n", "Odds"), list[str]()
    # What a narrow terminal can do without, the least important first.
    for name in ("", "Allowed", "n", "Interval", "Odds"):
        left_out.append(name)
        told = _table(rows, right, left_out)
        if Measurement.get(MEASURING, MEASURING.options, told).maximum <= width:
            break
    return told


def _table(
    rows: Sequence[Mapping[str, str | Text]], right: Collection[str] = (), left_out: Collection[str] = ()
) -> Table:
    """A table without the columns that say nothing in any row."""
    names = [
        name
        for name in (rows[0] if rows else ())
        if name not in left_out and any(str(row[name]) != NONE for row in rows)
    ]
    told = bare_table(*names, right=tuple(right))
    for row in rows:
        told.add_row(*(row[name] for name in names))
    return told


def _reasons(records: list[DecisionRecord], said: str) -> list[RenderableType]:
    """What stands in the way, in the judge's words; not what the headline says already."""
    told: list[RenderableType] = []
    for one in records:
        if one.verdict == "Pass" or not one.canary_samples or one.message in said:
            continue
        # The row has the figures; what is still lacking is in the end of the sentence.
        waits = one.verdict == "NotEnoughEvidence"
        why = LACKING.sub("", one.message) if waits else one.message
        told.append(Text.assemble((f"{one.guard}: ", guards.COLOURS[one.verdict]), why))
    return told


def _report(records: list[DecisionRecord]) -> RenderableType:
    found = next((one for one in records if one.guard == "episodeReturn"), None)
    conclusion, figures = guards.report(found)
    return Text.assemble(("Difference of mean returns: ", "bold"), figures, (conclusion, "bold"))


def _lineage(seen: Seen) -> RenderableType | None:
    """From which run each policy came, and what answers with it."""
    both = (("stable", seen.status.stable), ("canary", seen.status.canary))
    rows = [
        {
            "Lineage": name,
            "Job": arm.lineage.job or NONE,
            "Attempt": number(arm.lineage.attempt),
            "Configuration": short(arm.lineage.configuration or NONE),
            "Checkpoint": arm.lineage.checkpoint or NONE,
            "Image": short((arm.lineage.image or NONE).rpartition("@")[2]),
        }
        for name, arm in both
        if arm is not None and arm.lineage is not None
    ]
    return _table(rows, right=("Attempt",)) if rows else None


def _hints(seen: Seen) -> list[str]:
    """What a person can do now, as it is typed."""
    name, trial = seen.name, seen.status.trial
    quarantined = [item.digest for item in seen.status.quarantined]
    match seen.reason:
        case "AwaitingApproval" if trial is None:
            return [f"begin: ratchet rollout promote {name}"]
        case "AwaitingApproval" | "Paused":
            return [f"go on: ratchet rollout resume {name}", f"take it back: ratchet rollout abort {name}"]
        case "Quarantined" | "AttemptsExhausted":
            return [f"try it again: ratchet rollout retry {name}"]
        case _ if trial is None and seen.status.previous not in (None, *quarantined):
            before = short(seen.status.previous or "")
            return [f"{before} served before; go back to it: ratchet rollout undo {name}"]
        case _:
            return []


def history(seen: Seen, now: datetime) -> RenderableType:
    """Show how past trials ended, the newest last, and what is on trial now."""
    status = seen.status
    kept_out = {item.digest for item in status.quarantined}
    told = bare_table("Policy", "Ended", "Ago", "Because")
    told.columns[-1].no_wrap = False
    told.columns[-1].overflow = "fold"
    for past in status.history:
        because = past.message
        if past.digest in kept_out and past.outcome != "Promoted":
            because = f"{because} Quarantined.".strip()
        told.add_row(
            short(past.digest), Text(past.outcome, OUTCOMES[past.outcome]), since(past.time, now), because
        )
    if status.trial is not None and status.canary is not None:
        told.add_row(short(status.canary.digest), Text("on trial", "cyan"), NONE, seen.message)
    if not told.rows:
        return Text("no trial yet")
    if status.stable is None:
        return told
    return Group(told, "", Text(f"{short(status.stable.digest)} serves.", "dim"))


def listing(found: list[Seen], created: list[str], now: datetime, everywhere: bool) -> RenderableType:
    """List rollouts, one in each row."""
    columns = ["Name", "Status", "Serving", "Ready", "Trial", "Weight", "Age"]
    told = bare_table(*(["Namespace"] if everywhere else []), *columns, right=("Ready", "Weight"))
    for seen, birth in zip(found, created, strict=True):
        stable, canary = seen.status.stable, seen.status.canary
        cells: list[str | Text] = [
            seen.name,
            Text(seen.reason, seen.colour),
            short(stable.digest) if stable else NONE,
            str(seen.status.ready),
            short(canary.digest) if canary else NONE,
            f"{canary.weight}%" if canary else NONE,
            since(birth, now),
        ]
        told.add_row(*([seen.namespace] if everywhere else []), *cells)
    return told
