"""The `ratchet` command, also as `kubectl ratchet`: arguments in, exit code out.

A command here reads its arguments, asks the cluster, and hands the answer to a renderer. What is
said is in `words`, `tables` and `live`; what is asked of Kubernetes is in `cluster`.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from ratchet import __version__
from ratchet.api.v1alpha1.kinds import KINDS, POLICY_DEPLOYMENT, RL_TRAINING_JOB
from ratchet.cli import live, manifests, tables
from ratchet.cli.cluster import Cluster, Resource, Target
from ratchet.cli.export import Weights, Which, export, of_job
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
from ratchet.cli.outcome import EPILOG, CommandError, Exit
from ratchet.cli.rollout.commands import app as rollout
from ratchet.cli.words import ended, value

JOB_LABEL = "ratchet.dev/job"
COMPONENT_LABEL = "ratchet.dev/component"
WIDE_COLUMNS = 160


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    help="Train reinforcement-learning policies on Kubernetes.",
)

app.add_typer(rollout, name="rollout")

Name = Annotated[str, typer.Argument(help="Name of an RLTrainingJob.", show_default=False)]


def _job(cluster: Cluster, name: str) -> Resource:
    job = cluster.get(RL_TRAINING_JOB, name)
    if job is None and cluster.get(POLICY_DEPLOYMENT, name) is not None:
        raise CommandError(
            f"{name} is a PolicyDeployment and no RLTrainingJob: ratchet rollout status {name}"
        )
    return job or existing(cluster, RL_TRAINING_JOB, name)


def _read_files(files: list[str]) -> list[manifests.Manifest]:
    return [manifest for file in manifests.expand(files) for manifest in manifests.read(file)]


Files = Annotated[list[str], typer.Option("--file", "-f", help="YAML file or folder; - is standard input.")]


@app.command(epilog=EPILOG)
def train(
    ctx: typer.Context,
    file: Files,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it learn until it ends.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Format = None,
) -> None:
    """Apply a job, and watch it learn with --watch.

    Applying is server-side, and the file wins over what others changed.

    Ctrl-C stops watching; the job goes on.
    """
    if watch and output:
        raise CommandError("--watch shows a picture and --output prints data: take one of them", Exit.USAGE)
    read = _read_files(file)
    _refuse(manifests.findings(read), err=True)
    foreign = [manifest.name for manifest in read if not manifests.judged(manifest)]
    if foreign:
        raise CommandError(
            f"train applies Ratchet's objects only; apply {', '.join(foreign)} with kubectl", Exit.USAGE
        )
    resources = [cast(Resource, manifest.content) for manifest in read]
    jobs = [resource for resource in resources if resource["kind"] == RL_TRAINING_JOB.name]
    if not jobs or (watch and len(jobs) > 1):
        wanted = "one RLTrainingJob" if watch else "an RLTrainingJob"
        raise CommandError(f"{', '.join(file)}: has {len(jobs)} jobs; write {wanted}", Exit.USAGE)
    for resource in resources:
        if "name" not in resource["metadata"]:
            raise CommandError(
                "train applies, and what is applied has a metadata.name; use `kubectl create` "
                "with generateName",
                Exit.USAGE,
            )

    # A file may name its namespace; what is watched is then there too.
    target = Target(namespace or value(jobs[0], "metadata.namespace"), context, kubeconfig)
    cluster = reach(ctx, target)
    applied = [cluster.apply(resource, KINDS[resource["kind"]]) for resource in resources]
    if output:
        data(applied[0] if len(applied) == 1 else {"items": applied}, output)
        return
    for resource in resources:
        typer.echo(f"{KINDS[resource['kind']].name}/{resource['metadata']['name']} applied")
    name = str(jobs[0]["metadata"]["name"])
    if watch:
        _watch(cluster, name)
    else:
        show(f"watch it learn: ratchet watch {name}")


@app.command("watch", epilog=EPILOG)
def watch_job(
    ctx: typer.Context,
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Watch a job learn until it ends."""
    cluster = reach(ctx, Target(namespace, context, kubeconfig))
    _job(cluster, name)
    _watch(cluster, name)


def _watch(cluster: Cluster, name: str) -> None:
    console = terminal()
    try:
        job = live.follow(cluster.watch(RL_TRAINING_JOB, name), console, now)
    except KeyboardInterrupt:
        console.print(f"\nstopped watching; {name} goes on. See it again: ratchet watch {name}")
        raise typer.Exit(Exit.INTERRUPTED) from None
    console.print(live.summary(job, now()))
    raise typer.Exit(Exit.OK if ended(job) else Exit.NO)


@app.command(epilog=EPILOG)
def status(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One job in detail; default: list all.")] = None,
    namespace: Namespace = None,
    everywhere: Everywhere = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Annotated[
        Literal["json", "yaml", "wide"] | None,
        typer.Option("--output", "-o", help="Data, or wide for more columns."),
    ] = None,
) -> None:
    """List the jobs, or show one with its conditions."""
    cluster = reach(ctx, Target(namespace, context, kubeconfig))
    if name:
        job = _job(cluster, name)
        if output in ("json", "yaml"):
            data(job, output)
        else:
            show(tables.detail(job, now()))
        return
    jobs = cluster.objects(RL_TRAINING_JOB, everywhere)
    if output in ("json", "yaml"):
        data({"apiVersion": "v1", "kind": "List", "items": jobs}, output)
    elif jobs:
        wide = output == "wide"
        show(tables.jobs(jobs, now(), wide, everywhere), width=WIDE_COLUMNS if wide else 0)
    else:
        where = "any namespace" if everywhere else f"namespace {cluster.namespace}"
        terminal(stderr=True).print(f"no RLTrainingJob in {where}")


@app.command(epilog=EPILOG)
def logs(
    ctx: typer.Context,
    name: Name,
    workers: Annotated[bool, typer.Option("--workers", help="Of the workers, not the trainer.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="Only the last lines of each pod.")
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a job's trainer, or of its workers."""
    cluster = reach(ctx, Target(namespace, context, kubeconfig))
    component = "rollouts" if workers else "trainer"
    _job(cluster, name)
    pods = cluster.pods(f"{JOB_LABEL}={name},{COMPONENT_LABEL}={component}")
    if not pods:
        raise CommandError(f"{name} has no pod of its {component} now: see `ratchet status {name}`")
    try:
        for pod, text in cluster.logs(pods, follow, tail):
            typer.echo(f"{pod}: {text}" if len(pods) > 1 else text)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


@app.command(epilog=EPILOG)
def checkpoints(
    ctx: typer.Context,
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Format = None,
) -> None:
    """Show the latest and the best checkpoint.

    From the job's status, so no S3 credentials are needed; the bucket holds the whole list.
    """
    job = _job(reach(ctx, Target(namespace, context, kubeconfig)), name)
    if output:
        data(value(job, "status.checkpoints") or {}, output)
    else:
        show(tables.checkpoints(job, now()))


@app.command("export", epilog=EPILOG)
def export_policy(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(help="A job, s3://… of a checkpoint or a policy, or ./folder.", show_default=False),
    ],
    folder: Annotated[Path, typer.Argument(help="To write the policy to.", show_default=False)],
    weights: Annotated[Weights, typer.Option("--weights", help="Number format of the weights.")] = "float32",
    checkpoint: Annotated[Which, typer.Option("--checkpoint", help="Of a job.")] = "best",
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Of the bucket. Default: the job's, AWS_ENDPOINT_URL, AWS."),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Format = None,
) -> None:
    """Write a policy to a folder that the policy server takes.

    Credentials for the bucket are found as by AWS's own tools.
    """
    uri, digest, region = source, None, None
    if not any(mark in source for mark in "/."):
        job = _job(reach(ctx, Target(namespace, context, kubeconfig)), source)
        uri, digest, its_endpoint, region = of_job(job, checkpoint)
        endpoint = endpoint or its_endpoint
    artifact = export(uri, digest, folder, weights, endpoint, region)
    if output:
        content = artifact.description.model_dump(mode="json", by_alias=True)
        data({"digest": artifact.digest, "folder": str(folder), **content}, output)
        return
    lineage = artifact.description.lineage
    show(f"{folder}: policy of {lineage.job} at {lineage.steps:,} steps, {weights} weights")
    show(f"digest sha256:{artifact.digest}")


@app.command(epilog=EPILOG)
def suspend(
    ctx: typer.Context,
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Format = None,
) -> None:
    """Stop a job's pods after a last checkpoint; the job keeps its place."""
    cluster = reach(ctx, Target(namespace, context, kubeconfig))
    _set_suspend(cluster, name, True, output)


@app.command(epilog=EPILOG)
def resume(
    ctx: typer.Context,
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Format = None,
) -> None:
    """Go on with a suspended job from its newest checkpoint."""
    cluster = reach(ctx, Target(namespace, context, kubeconfig))
    _set_suspend(cluster, name, False, output)


def _set_suspend(cluster: Cluster, name: str, wanted: bool, output: str | None) -> None:
    job = _job(cluster, name)
    if ended(job) is not None:
        raise CommandError(f"{name} has ended: there is nothing to {'suspend' if wanted else 'resume'}")
    changed = cluster.patch(RL_TRAINING_JOB, name, {"spec": {"suspend": wanted}})
    if output:
        data(changed, output)
    elif bool(value(job, "spec.suspend")) == wanted:
        show(f"{name} was {'suspended' if wanted else 'not suspended'} already")
    else:
        then = f"resume it: ratchet resume {name}" if wanted else f"watch it: ratchet watch {name}"
        show(f"{name} {'suspended' if wanted else 'resumed'}; {then}")


@app.command(epilog=EPILOG)
def validate(
    file: Annotated[
        list[str] | None, typer.Option("--file", "-f", help="YAML file or folder; - is standard input.")
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="As with -f.")] = None,
    output: Format = None,
) -> None:
    """Find offline, in manifests, what the API server would refuse.

    A problem is a line: file: kind/name: path: sentence.

    Objects that are not Ratchet's are passed over.
    """
    files = [*(file or []), *(more or [])]
    if not files:
        raise CommandError("nothing to validate: write ratchet validate -f job.yaml", Exit.USAGE)
    read = _read_files(files)
    found = manifests.findings(read)
    judged = [manifest for manifest in read if manifests.judged(manifest)]
    if output:
        problems = [
            {
                "file": finding.manifest.file,
                "object": finding.manifest.name,
                "path": finding.problem.where,
                "message": finding.problem.sentence,
            }
            for finding in found
        ]
        data({"valid": not found, "problems": problems}, output)
        raise typer.Exit(Exit.NO if found else Exit.OK)
    _refuse(found, err=False)
    if not judged:
        raise CommandError(f"{', '.join(files)}: has no object of Ratchet's", Exit.USAGE)
    for manifest in judged:
        typer.echo(f"{manifest.file}: {manifest.name}: valid")


def _refuse(found: list[manifests.Finding], err: bool) -> None:
    if found:
        for finding in found:
            typer.echo(str(finding), err=err)
        raise typer.Exit(Exit.NO)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ratchet {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train reinforcement-learning policies on Kubernetes."""


def main() -> None:
    """Run the command; the exit code says how it went."""
    try:
        app()
    except BrokenPipeError:
        # The reader, such as head, has seen enough.
        sys.stderr.close()
        raise SystemExit(Exit.OK) from None


if __name__ == "__main__":
    main()
