"""`ratchet rollout …`: arguments in, exit code out."""

import re
from typing import Annotated, Literal

import typer

from ratchet.api.v1alpha1.base import seconds
from ratchet.api.v1alpha1.kinds import POLICY_DEPLOYMENT
from ratchet.cli.cluster import Cluster, Target
from ratchet.cli.options import (
    Context,
    Everywhere,
    Format,
    Group,
    Kubeconfig,
    Namespace,
    data,
    existing,
    now,
    reach,
    show,
    terminal,
)
from ratchet.cli.outcome import CommandError, Exit
from ratchet.cli.rollout import view
from ratchet.cli.rollout.follow import follow
from ratchet.cli.rollout.orders import Verb, command, refusal
from ratchet.cli.rollout.seen import ANNOTATION, Seen, read
from ratchet.cli.words import value

TAKEN_SECONDS = 15.0
DURATION = re.compile(r"(?=.)([0-9]+h)?([0-9]+m)?([0-9]+s)?")
EPILOG = (
    "Exit codes: 0 done, promoted or serving; 1 rolled back, refused or not found; 2 wrong usage; "
    "69 no cluster reached; 124 --timeout passed; 130 stopped watching, the rollout goes on."
)

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    help="See how a policy takes over, and say what becomes of it.",
)

Name = Annotated[str, typer.Argument(help="Name of a PolicyDeployment.", show_default=False)]


@app.command(epilog=EPILOG)
def status(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="Of a PolicyDeployment; default: list all.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow until the rollout ends.")] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", help="Of --watch, such as 90s or 15m; 0s waits for ever.")
    ] = "0s",
    namespace: Namespace = None,
    everywhere: Everywhere = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Format = None,
) -> None:
    """Show who serves, who is on trial at what weight, and what the guards say.

    Ctrl-C stops watching; the rollout goes on.
    """
    if watch and (output or name is None):
        raise CommandError(
            "--watch shows one rollout as it goes: write its name, and no --output", Exit.USAGE
        )
    if name is None:
        _list(reach(ctx, Target(namespace, context, kubeconfig)), everywhere, output)
        return
    limit = _seconds(timeout)
    cluster = reach(ctx, Target(namespace, context, kubeconfig))
    found = existing(cluster, POLICY_DEPLOYMENT, name)
    if watch:
        _watch(cluster, name, limit)
    elif output:
        data(found, output)
    else:
        show(view.screen(read(found), now(), terminal().width))


def _seconds(timeout: str) -> float | None:
    if DURATION.fullmatch(timeout) is None:
        raise CommandError(f"--timeout {timeout} is no duration: write 90s, 15m or 1h30m", Exit.USAGE)
    return seconds(timeout) or None


def _list(cluster: Cluster, everywhere: bool, output: Literal["json", "yaml"] | None) -> None:
    found = cluster.objects(POLICY_DEPLOYMENT, everywhere)
    if output:
        data({"apiVersion": "v1", "kind": "List", "items": found}, output)
    elif found:
        created = [str(value(one, "metadata.creationTimestamp")) for one in found]
        show(view.listing([read(one) for one in found], created, now(), everywhere))
    else:
        where = "any namespace" if everywhere else f"namespace {cluster.namespace}"
        terminal(stderr=True).print(f"no PolicyDeployment in {where}")


def _watch(cluster: Cluster, name: str, limit: float | None) -> None:
    console = terminal()
    try:
        ended = follow(name, cluster.watch(POLICY_DEPLOYMENT, name, limit), console, now)
    except KeyboardInterrupt:
        console.print(f"\nstopped watching; {name} goes on")
        raise typer.Exit(Exit.INTERRUPTED) from None
    style = "green" if ended.code is Exit.OK else "red"
    console.print(f"{name} {ended.sentence}", style=style, soft_wrap=True)
    raise typer.Exit(ended.code)


@app.command(epilog=EPILOG)
def history(
    ctx: typer.Context,
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Format = None,
) -> None:
    """Show how past trials ended, and why."""
    found = existing(reach(ctx, Target(namespace, context, kubeconfig)), POLICY_DEPLOYMENT, name)
    if output:
        data(value(found, "status.history") or [], output)
    else:
        show(view.history(read(found), now()))


def _add(verb: Verb, what: str) -> None:
    @app.command(verb, epilog=EPILOG, help=what)
    def order(
        ctx: typer.Context,
        name: Name,
        namespace: Namespace = None,
        context: Context = None,
        kubeconfig: Kubeconfig = None,
        output: Format = None,
    ) -> None:
        target = Target(namespace, context, kubeconfig)
        where = "".join(
            f" --{flag} {text}"
            for flag, text in (("namespace", namespace), ("context", context), ("kubeconfig", kubeconfig))
            if text
        )
        _order(reach(ctx, target), verb, name, output, where)

    _ = order


_add("promote", "Let the trial serve everybody now, whatever its guards say yet.")
_add("pause", "Hold the trial at its weight; guards go on watching.")
_add("resume", "Go on after pause, or past a step that waits for approval.")
_add("abort", "Take the trial back and quarantine its policy.")
_add("undo", "Go back to the policy that served before; with a trial, abort it.")
_add("retry", "Try again what was quarantined, timed out or undone.")


def _order(
    cluster: Cluster, verb: Verb, name: str, output: Literal["json", "yaml"] | None, where: str
) -> None:
    seen = read(existing(cluster, POLICY_DEPLOYMENT, name))
    if why := refusal(verb, seen):
        raise CommandError(why)
    written = command(verb)
    changed = cluster.patch(POLICY_DEPLOYMENT, name, {"metadata": {"annotations": {ANNOTATION: written}}})
    taken = _taken(cluster, name, written)
    if output:
        data(changed, output)
    elif taken is None:
        raise CommandError(
            f"{verb} is written, and the operator has not taken it within {TAKEN_SECONDS:.0f} s; it will as "
            "soon as it runs: kubectl get pods -A -l app.kubernetes.io/name=ratchet",
            Exit.TIMED_OUT,
        )
    else:
        typer.echo(f"{name}: {verb} taken. {taken.reason}: {taken.message}")
        if taken.status.trial is not None or verb in ("undo", "retry"):
            typer.echo(f"follow it: ratchet rollout status {name} --watch{where}")


def _taken(cluster: Cluster, name: str, written: str) -> Seen | None:
    """The first state in which the operator has taken an order; None where it does not in time."""
    for resource in cluster.watch(POLICY_DEPLOYMENT, name, TAKEN_SECONDS):
        if resource is None:
            raise CommandError(f"{name} has been deleted")
        seen = read(resource)
        if seen.status.command == written:
            return seen
    return None
