"""What every command takes, how it reaches the cluster, and how it prints; what it says is elsewhere."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast

import typer
import yaml
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from ratchet.api.v1alpha1.kinds import Kind
from ratchet.cli.cluster import Cluster, Connect, Resource, Target, connect
from ratchet.cli.outcome import CommandError
from ratchet.cli.words import value

MOST_NAMES = 8

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Default: the namespace of the kubeconfig's context.")
]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="List all namespaces.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[
    str | None, typer.Option("--kubeconfig", help="Default: $KUBECONFIG, then ~/.kube/config.")
]
Format = Annotated[
    Literal["json", "yaml"] | None, typer.Option("--output", "-o", help="The object itself, as data.")
]


class Group(TyperGroup):
    """Says a user's mistake in a sentence, without a stack trace."""

    def invoke(self, ctx: Any) -> Any:  # noqa: D102
        try:
            return super().invoke(ctx)
        except CommandError as error:
            terminal(stderr=True).print(f"error: {error}", style="red", soft_wrap=True)
            raise typer.Exit(error.code) from error


def reach(ctx: typer.Context, target: Target) -> Cluster:
    """The cluster that is meant."""
    return cast(Connect, ctx.obj or connect)(target)


def existing(cluster: Cluster, kind: Kind, name: str) -> Resource:
    """One object.

    Raises:
        CommandError: there is none of that name; the error names those there are.

    """
    found = cluster.get(kind, name)
    if found is None:
        known = [str(value(other, "metadata.name")) for other in cluster.objects(kind)]
        more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
        there = f"there are {', '.join(known[:MOST_NAMES])}{more}" if known else "there is none"
        raise CommandError(f"no {kind.name} {name} in namespace {cluster.namespace}: {there}")
    return found


def now() -> datetime:
    """The one clock of the command."""
    return datetime.now(UTC)


def terminal(stderr: bool = False) -> Console:
    """Where it prints for people: what the cluster says is text, and no markup."""
    return Console(stderr=stderr, markup=False, highlight=False)


def show(what: RenderableType, width: int = 0) -> None:
    """Print for people, at least so wide."""
    console = terminal()
    console.width = max(width, console.width)
    console.print(what)


def data(content: Any, form: str) -> None:
    """Print for programs."""
    if form == "json":
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    typer.echo(text, nl=False)
