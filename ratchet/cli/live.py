"""Watching a job: a live picture on a terminal, plain lines elsewhere, a summary at the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ratchet.cli import tables
from ratchet.cli.curve import Point, draw
from ratchet.cli.outcome import CommandError, Exit
from ratchet.cli.words import (
    NONE,
    Resource,
    conditions,
    ended,
    number,
    running_time,
    short,
    since,
    span,
    state,
    value,
)

Clock = Callable[[], datetime]

PLAIN_INTERVAL_SECONDS = 5.0
LABEL_WIDTH = 9
# These have a line of their own.
ORDINARY = frozenset({"Failed", "Succeeded", "Suspended", "Progressing"})


@dataclass
class Watched:
    """What was seen of one job while watching it."""

    job: Resource = field(default_factory=dict[str, object])
    returns: list[Point] = field(default_factory=list[Point])
    evaluations: list[Point] = field(default_factory=list[Point])

    def see(self, job: Resource) -> None:
        """Take in the newest state."""
        self.job = job
        steps, mean = value(job, "status.progress.steps"), value(job, "status.progress.meanReturn")
        if steps is not None and mean is not None:
            # After a resume from a checkpoint, steps go back: so does the curve.
            curve: list[dict[str, float]] = value(job, "status.progress.curve") or []
            told = {float(point["steps"]): float(point["meanReturn"]) for point in curve}
            known = {at: mean for at, mean in self.returns if at < steps} | told
            self.returns = sorted((known | {float(steps): float(mean)}).items())
        latest = value(job, "status.evaluation.latest")
        if latest:
            point = (float(latest["steps"]), float(latest["meanReturn"]))
            if point not in self.evaluations:
                self.evaluations.append(point)


def picture(watched: Watched, now: datetime, width: int) -> RenderableType:
    """Draw the live view."""
    job = watched.job
    condition = state(job)
    target = value(job, "spec.stop.targetReturn")
    inner = max(20, min(width, 100) - 4 - LABEL_WIDTH)
    curve = draw(watched.returns, watched.evaluations, target, width=inner, height=8)
    rows = [Text(" " * LABEL_WIDTH + line, "cyan") for line in curve.lines]
    if watched.returns or watched.evaluations:
        rows[0].plain = short(curve.high).rjust(LABEL_WIDTH - 1) + " " + curve.lines[0]
        rows[-1].plain = short(curve.low).rjust(LABEL_WIDTH - 1) + " " + curve.lines[-1]
        first, last = short(curve.first), short(curve.last)
        rows.append(Text(" " * LABEL_WIDTH + first + last.rjust(inner - len(first)), "dim"))
    else:
        rows[3] = Text("waiting for the first finished episodes".center(inner), "dim")
    legend = "return of training ─  evaluation ●" + ("" if target is None else "  target ┄")

    facts = Table.grid(expand=True)
    for _ in range(4):
        facts.add_column(ratio=1)
    for start in range(0, len(cells := _facts(job, now)), 4):
        facts.add_row(*(Text.assemble((f"{name} ", "dim"), text) for name, text in cells[start : start + 4]))
    notes = [Text(text, "yellow") for text in _notes(job)]
    return Panel(
        Group(Text(legend, "dim"), *rows, "", facts, Text(condition.sentence, condition.colour), *notes),
        title=f"{value(job, 'metadata.name')} · {condition.word}",
        width=min(width, 100),
    )


def _facts(job: Resource, now: datetime) -> list[tuple[str, str]]:
    return [
        ("steps", number(value(job, "status.progress.steps"))),
        ("steps/s", number(value(job, "status.progress.stepsPerSecond"))),
        ("return", number(value(job, "status.progress.meanReturn"), 1)),
        ("eval", number(value(job, "status.evaluation.latest.meanReturn"), 1)),
        ("version", number(value(job, "status.progress.policyVersion"))),
        ("lag", number(value(job, "status.progress.policyLag"), 1)),
        ("workers", tables.workers(job)),
        ("time", span(running_time(job, now))),
        ("checkpoint", short(value(job, "status.checkpoints.latest.steps"))),
        ("ago", since(value(job, "status.checkpoints.latest.time"), now)),
        ("device", str(value(job, "status.device") or NONE)),
        ("attempt", number(value(job, "status.attempt"))),
    ]


def _notes(job: Resource) -> list[str]:
    """Say what is not as it should be, besides the decisive conditions."""
    return [
        f"{item['type']} is {item['status']}: {item['message']}"
        for item in conditions(job)
        if item["type"] not in ORDINARY and item["status"] != "True" and item.get("message")
    ]


def line(job: Resource, now: datetime) -> str:
    """Write a job's progress in one plain line."""
    told = [(name, text) for name, text in _facts(job, now) if text != NONE]
    return "  ".join([state(job).word, *(f"{name} {text}" for name, text in told)])


def follow(states: Iterator[Resource | None], console: Console, clock: Clock) -> Resource:
    """Show a job until it has ended, and return it as it was then.

    Raises:
        CommandError: the job was deleted.

    """
    show = _live if console.is_terminal else _plain
    watched = Watched()
    name = ""
    for _ in show(states, watched, console, clock):
        name = str(value(watched.job, "metadata.name"))
        if ended(watched.job) is not None:
            return watched.job
    raise CommandError(f"{name or 'the job'} has been deleted", Exit.NO)


def _live(
    states: Iterator[Resource | None], watched: Watched, console: Console, clock: Clock
) -> Iterator[None]:
    def render() -> RenderableType:
        return picture(watched, clock(), console.width)

    with Live(get_renderable=render, console=console, refresh_per_second=4):
        for job in states:
            if job is None:
                return
            watched.see(job)
            yield


def _plain(
    states: Iterator[Resource | None], watched: Watched, console: Console, clock: Clock
) -> Iterator[None]:
    said, evaluated, at = "", None, None
    for job in states:
        if job is None:
            return
        watched.see(job)
        now = clock()
        condition, latest = state(job).sentence, value(job, "status.evaluation.latest.steps")
        if condition != said:
            console.print(condition, soft_wrap=True)
        due = at is None or (now - at).total_seconds() >= PLAIN_INTERVAL_SECONDS
        if due or latest != evaluated or condition != said:
            console.print(line(job, now), soft_wrap=True)
            at = now
        said, evaluated = condition, latest
        yield


def summary(job: Resource, now: datetime) -> RenderableType:
    """Say how a job ended and what to try next."""
    name = str(value(job, "metadata.name"))
    condition = state(job)
    lines = [Text(f"{name}: {condition.sentence}", f"bold {condition.colour}")]
    steps, took = value(job, "status.progress.steps"), running_time(job, now)
    if steps is not None:
        lines.append(Text(f"{number(steps)} steps in {span(took)}"))
    if best := value(job, "status.evaluation.best") or value(job, "status.evaluation.latest"):
        lines.append(Text(f"evaluation: mean return {tables.evaluation(best)}"))
    saved = value(job, "status.checkpoints.best") or value(job, "status.checkpoints.latest")
    if saved:
        lines.append(Text(f"checkpoint: {saved['uri']}"))
    lines += [Text(""), Text("Try next", "bold")]
    for command, what in _next(job, name):
        lines.append(Text.assemble("  ", (command, "cyan"), f"  {what}"))
    for text in lines:
        text.overflow = "fold"
    return Group(*lines)


def _next(job: Resource, name: str) -> list[tuple[str, str]]:
    if ended(job):
        return [
            (f"ratchet checkpoints {name}", "where the policy is"),
            (f"ratchet status {name}", "all figures and conditions"),
            (f"kubectl delete rlj {name}", "the checkpoints stay in S3"),
        ]
    return [
        (f"ratchet status {name}", "each failure and what the trainer said last"),
        (f"kubectl describe rlj {name}", "events"),
        (f"kubectl delete rlj {name}", "then apply it again, put right; checkpoints stay in S3"),
    ]
