"""Tables and details of objects that exist, 80 columns wide; no calls to the cluster from here."""

from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ratchet.cli.words import (
    NONE,
    Resource,
    conditions,
    number,
    running_time,
    short,
    since,
    span,
    state,
    value,
)


def bare_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Make a table without lines, whose cells are cut rather than wrapped."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", no_wrap=True, overflow="ellipsis"
        )
    return table


def jobs(found: list[Resource], now: datetime, wide: bool = False, everywhere: bool = False) -> Table:
    """List jobs, one in each row."""
    columns = ["Name", "Status", "Steps", "Return", "Eval", "Steps/s", "Workers", "Age"]
    numbers = ("Steps", "Return", "Eval", "Steps/s", "Workers", "Version", "Lag", "Attempt")
    if everywhere:
        columns.insert(0, "Namespace")
    if wide:
        columns += ["Version", "Lag", "Device", "Checkpoint", "Attempt"]
    table = bare_table(*columns, right=numbers)
    for job in found:
        condition = state(job)
        row: list[str | Text] = [
            str(value(job, "metadata.name")),
            Text(condition.word, condition.colour),
            short(value(job, "status.progress.steps")),
            number(value(job, "status.progress.meanReturn"), 1),
            number(value(job, "status.evaluation.latest.meanReturn"), 1),
            short(value(job, "status.progress.stepsPerSecond")),
            workers(job),
            since(value(job, "metadata.creationTimestamp"), now),
        ]
        if everywhere:
            row.insert(0, str(value(job, "metadata.namespace")))
        if wide:
            row += [
                number(value(job, "status.progress.policyVersion")),
                number(value(job, "status.progress.policyLag"), 1),
                str(value(job, "status.device") or NONE),
                since(value(job, "status.checkpoints.latest.time"), now),
                number(value(job, "status.attempt")),
            ]
        table.add_row(*row)
    return table


def workers(job: Resource) -> str:
    """Write ready and wanted workers: 2/4."""
    ready, wanted = value(job, "status.workers.ready"), value(job, "status.workers.wanted")
    return NONE if ready is None else f"{ready}/{wanted}"


def detail(job: Resource, now: datetime) -> RenderableType:
    """Show one job with its conditions and failures."""
    condition = state(job)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, text in _facts(job, now):
        facts.add_row(name, text)
    parts: list[RenderableType] = [
        Text.assemble((str(value(job, "metadata.name")), "bold"), "  ", (condition.word, condition.colour)),
        facts,
    ]
    if known := conditions(job):
        table = bare_table("Condition", "Is", "For", "Because")
        table.columns[-1].no_wrap = False
        for item in known:
            because = str(item.get("message") or item.get("reason", ""))
            table.add_row(item["type"], item["status"], since(item.get("lastTransitionTime"), now), because)
        parts += ["", table]
    if failed := value(job, "status.failures"):
        table = bare_table("Failure", "Exit", "Was", "Ago", "Said")
        table.columns[-1].no_wrap = False
        for item in failed:
            table.add_row(
                item["reason"],
                str(item.get("exitCode", NONE)),
                {"FailJob": "final", "Ignore": "ignored", "Count": "counted"}[item["action"]],
                since(item["time"], now),
                item.get("message", ""),
            )
        parts += ["", table]
    return Group(*parts)


def _facts(job: Resource, now: datetime) -> list[tuple[str, str]]:
    progress: dict[str, Any] = value(job, "status.progress") or {}
    environment = value(job, "spec.environment.id") or value(job, "spec.environment.entryPoint")
    facts = [("Environment", str(environment)), ("Running for", span(running_time(job, now)))]
    if progress:
        steps, rate = number(progress.get("steps")), number(progress.get("stepsPerSecond"))
        lag = number(progress.get("policyLag"), 1)
        facts += [
            ("Steps", f"{steps}, {rate} a second"),
            ("Return", f"{number(progress.get('meanReturn'), 1)} over the last 100 training episodes"),
            ("Policy", f"version {number(progress.get('policyVersion'))}, lag {lag}"),
        ]
    if evaluated := value(job, "status.evaluation.latest"):
        facts.append(("Evaluation", evaluation(evaluated)))
    if best := value(job, "status.evaluation.best"):
        facts.append(("Best", evaluation(best)))
    facts += [
        ("Workers", f"{workers(job)} ready"),
        ("Device", str(value(job, "status.device") or NONE)),
        ("Attempt", number(value(job, "status.attempt"))),
    ]
    if newest := value(job, "status.checkpoints.latest"):
        facts.append(("Checkpoint", f"at {number(newest['steps'])} steps, {since(newest['time'], now)} ago"))
    return facts


def evaluation(result: Resource) -> str:
    """Write one evaluation in a line."""
    return (
        f"{number(result['meanReturn'], 1)} ± {number(result['stdReturn'], 1)} over "
        f"{number(result['episodes'])} episodes, at {number(result['steps'])} steps"
    )


def checkpoints(job: Resource, now: datetime) -> RenderableType:
    """Show the checkpoints that the status names, with what is needed to fetch them."""
    table = bare_table("", "Steps", "Version", "Return", "Age", right=("Steps", "Version", "Return"))
    places: list[RenderableType] = []
    for name in ("latest", "best"):
        found = value(job, f"status.checkpoints.{name}")
        if found:
            table.add_row(
                name,
                number(found["steps"]),
                number(found["policyVersion"]),
                number(found.get("meanReturn"), 1),
                since(found["time"], now),
            )
            # Text, unwrapped: an address that is broken over two lines can't be copied.
            places += [
                "",
                Text(name, "bold"),
                Text(found["uri"], no_wrap=True, overflow="ignore"),
                Text(found["digest"], "dim", no_wrap=True, overflow="ignore"),
            ]
    if not places:
        return Text("no checkpoint yet")
    note = "From the job's status; the manifests in S3 are the whole list."
    return Group(table, *places, "", Text(note, "dim"))
