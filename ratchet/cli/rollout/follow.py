"""Following a rollout until it ends: a live screen on a terminal, elsewhere a plain line for each change."""

from collections.abc import Callable, Iterator
from datetime import datetime

from rich.console import Console, RenderableType
from rich.live import Live

from ratchet.cli.outcome import CommandError, Exit
from ratchet.cli.rollout import guards
from ratchet.cli.rollout.seen import End, Seen, end, read, short
from ratchet.cli.rollout.view import screen
from ratchet.cli.words import Resource

Clock = Callable[[], datetime]


def follow(name: str, states: Iterator[Resource | None], console: Console, clock: Clock) -> End:
    """Show a rollout until it has ended.

    Args:
        name: of the PolicyDeployment.
        states: each state of the object; None once it was deleted; ends when the time is up.
        console: a terminal, or not.
        clock: the present time.

    Raises:
        CommandError: the object was deleted, or the time is up.

    """
    show = _live if console.is_terminal else _plain
    followed: str | None = None
    seen: Seen | None = None
    for seen in show(name, states, console, clock):
        if found := end(seen, followed):
            return found
        if seen.status.trial is not None and seen.status.canary is not None:
            followed = seen.status.canary.digest
    why = f": {seen.reason}: {seen.message}" if seen else ""
    raise CommandError(f"timed out waiting for {name}{why}", Exit.TIMED_OUT)


def _read(name: str, states: Iterator[Resource | None]) -> Iterator[Seen]:
    for resource in states:
        if resource is None:
            raise CommandError(f"{name} has been deleted")
        yield read(resource)


def _live(name: str, states: Iterator[Resource | None], console: Console, clock: Clock) -> Iterator[Seen]:
    newest: list[Seen] = []

    def render() -> RenderableType:
        return screen(newest[-1], clock(), console.width) if newest else ""

    with Live(get_renderable=render, console=console, refresh_per_second=2):
        for seen in _read(name, states):
            newest[:] = [seen]
            yield seen


def _plain(name: str, states: Iterator[Resource | None], console: Console, clock: Clock) -> Iterator[Seen]:
    said: object = None
    for seen in _read(name, states):
        if (now := _changed(seen)) != said:
            # A person who reads a log wants to know when; a program can cut the first word.
            text = f"{clock():%H:%M:%S}  {line(seen)}"
            console.print(text, soft_wrap=True)
            said = now
        yield seen


def _changed(seen: Seen) -> object:
    """What makes a new line: a step, a weight, pods, a verdict; not each second, nor each sample."""
    verdicts = [(record.guard, record.verdict, record.proven) for record in seen.decisions]
    return seen.reason, _arms(seen), verdicts if seen.status.trial else seen.message


def _arms(seen: Seen) -> list[str]:
    both = (("stable", seen.status.stable), ("canary", seen.status.canary))
    return [
        f"{name} {short(arm.digest)} {arm.weight}% {arm.ready}/{arm.replicas}"
        for name, arm in both
        if arm is not None
    ]


def line(seen: Seen) -> str:
    """Write where a rollout stands in one plain line."""
    verdicts: dict[str, list[str]] = {}
    for record in seen.decisions:
        word = "proven" if record.proven else guards.WORDS[record.verdict]
        verdicts.setdefault(word, []).append(record.guard)
    told = [f"{word}: {', '.join(names)}" for word, names in verdicts.items()]
    return "  ".join([seen.reason, *_arms(seen), *told, seen.message])
