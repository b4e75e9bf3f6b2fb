"""The command line: `hack/cluster COMMAND`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shutil
import sys
import time
from collections.abc import Generator, Sequence

from localcluster import addons, docker, engine, gateway, images, kindcluster, nodeimage, s3, tools
from localcluster.nodeimage import NodeImage
from localcluster.settings import Settings, nodes_from_environment
from localcluster.shell import MissingRequirementError, StepError, tail
from localcluster.steps import Step, run_steps


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    settings = Settings.from_environment()
    started = time.monotonic()
    try:
        arguments.handler(settings, arguments)
    except StepError as error:
        print(f"\nhack/cluster {arguments.command}: {error}", file=sys.stderr)
        if error.log:
            print(f"{tail(error.log)}\n\nThe whole log: {error.log}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        if not isinstance(error, MissingRequirementError):
            print("Run the same command again to go on from here: what is finished is kept.", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on from here.", file=sys.stderr)
        return 130
    if arguments.command in {"up", "down", "clean", "base-images", "build", "load"}:
        print(f"{arguments.command}: done in {time.monotonic() - started:.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="make or heal the cluster, with metrics, storage and S3")
    up.add_argument(
        "--nodes",
        type=int,
        default=nodes_from_environment(),
        help="at least so many nodes in all (environment: NODES)",
    )
    up.set_defaults(handler=_up)

    doctor = commands.add_parser("doctor", help="say at once what `up` would need and this machine lacks")
    doctor.set_defaults(handler=_doctor)

    down = commands.add_parser("down", help="delete the cluster; images and tools stay")
    down.set_defaults(handler=_down)

    clean = commands.add_parser(
        "clean", help="delete the cluster, the images and the engine that were made here"
    )
    clean.set_defaults(handler=_clean)

    base = commands.add_parser(
        "base-images", help="have the base images that the Dockerfiles build on, and Redis"
    )
    base.set_defaults(handler=_base_images)

    build = commands.add_parser("build", help="build the project's images")
    build.add_argument(
        "names",
        nargs="+",
        choices=sorted(images.IMAGES),
        metavar="NAME",
        help=", ".join(sorted(images.IMAGES)),
    )
    build.set_defaults(handler=_build)

    load = commands.add_parser(
        "load", help="bring images into the cluster's nodes, where they are not there yet"
    )
    load.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(sorted(images.IMAGES))}, redis, or any image"
    )
    load.add_argument("--all", action="store_true", help="every project image that is built, and Redis")
    load.set_defaults(handler=_load)

    has_gateway = commands.add_parser("gateway", help="have Envoy Gateway in the cluster")
    has_gateway.set_defaults(handler=_gateway)

    status = commands.add_parser("status", help="say what is there")
    status.set_defaults(handler=_status)

    tool = commands.add_parser("tool", help="print the path of a tool, built if need be")
    tool.add_argument("name", help=", ".join(sorted(tools.RECIPES)))
    tool.set_defaults(handler=_tool)
    return parser


@contextlib.contextmanager
def _alone(settings: Settings) -> Generator[None]:
    """Holds the lock that keeps two commands from making the same things at once."""
    settings.prepare()
    with (settings.home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another hack/cluster command is at work: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _engine(settings: Settings) -> None:
    """Has a Docker engine, before anything that takes long."""
    engine.require_possible()
    settings.prepare()
    if not engine.reachable():
        run_steps(
            [Step("start the Docker engine", engine.reachable, lambda log: engine.start(settings, log))],
            settings.logs,
        )


def _doctor(settings: Settings, _: argparse.Namespace) -> None:
    """Says nothing where nothing is missing. Where no engine runs yet, `up` asks for registries; Go comes
    with `make setup`.
    """
    engine.require_possible()
    if engine.reachable() and nodeimage.choose() is None:
        nodeimage.require_permitted()


def _up(settings: Settings, arguments: argparse.Namespace) -> None:
    engine.require_possible()
    with _alone(settings):
        _engine(settings)
        found = nodeimage.choose()
        if found is None:
            nodeimage.require_buildable()
        steps = [
            *(nodeimage.build_steps(settings) if found is None else nodeimage.pull_steps(found)),
            *(tools.step(name, settings) for name in ("kind", "kubectl")),
            *_cluster_steps(
                settings, found or NodeImage(nodeimage.built_name(), built=True), arguments.nodes
            ),
            tools.step("helm", settings),
        ]
        run_steps(steps, settings.logs)
    print(f"export KUBECONFIG={settings.kubeconfig}")


def _cluster_steps(settings: Settings, image: NodeImage, nodes: int) -> list[Step]:
    return [
        Step(
            f"kind cluster {settings.cluster}",
            lambda: kindcluster.healthy(settings, nodes),
            lambda log: kindcluster.up(settings, image, nodes, log),
        ),
        Step(
            "pod routes",
            lambda: kindcluster.routes_set(settings),
            lambda log: kindcluster.set_routes(settings, log),
        ),
        addons.dns_step(settings),
        addons.metrics_server_step(settings),
        s3.step(settings),
    ]


def _down(settings: Settings, _: argparse.Namespace) -> None:
    with _alone(settings):
        if engine.reachable() and kindcluster.containers(settings):
            kindcluster.delete(settings, settings.logs / "down.log")


def _clean(settings: Settings, _: argparse.Namespace) -> None:
    with _alone(settings):
        log = settings.logs / "clean.log"
        if engine.reachable():
            if kindcluster.containers(settings):
                kindcluster.delete(settings, log)
            if engine.running_pid(settings) is None:
                # An engine that was there before keeps only what is its own.
                images.remove_built(log)
        engine.stop(settings)
        images.empty_build_folder(settings)
        shutil.rmtree(settings.home)
    print("Kept: apt packages, and Go's own caches (`go clean -cache -modcache` empties them).")


def _base_images(settings: Settings, _: argparse.Namespace) -> None:
    with _alone(settings):
        _engine(settings)
        run_steps(images.base_steps(settings), settings.logs)
    for name, image in images.base_images().items():
        print(f"{name}: {image}")


def _build(settings: Settings, arguments: argparse.Namespace) -> None:
    with _alone(settings):
        _engine(settings)
        run_steps(
            [*images.base_steps(settings), *(images.build_step(name, settings) for name in arguments.names)],
            settings.logs,
        )


def _load(settings: Settings, arguments: argparse.Namespace) -> None:
    wanted = [*arguments.names, *(images.loadable() if arguments.all else [])]
    if not wanted:
        raise StepError(
            "nothing to load", hint=f"Name images ({', '.join(sorted(images.IMAGES))}, redis), or pass --all."
        )
    with _alone(settings):
        _engine(settings)
        run_steps([images.load_step(name, settings) for name in dict.fromkeys(wanted)], settings.logs)


def _gateway(settings: Settings, _: argparse.Namespace) -> None:
    with _alone(settings):
        _engine(settings)
        run_steps(gateway.steps(settings), settings.logs)


def _status(settings: Settings, _: argparse.Namespace) -> None:
    if not engine.reachable():
        print("engine:  none answers; `hack/cluster up` starts one")
        return
    started = engine.running_pid(settings)
    print(f"engine:  answers{f', started here as process {started}' if started else ''}")
    for image in (*images.base_images().values(), *(f"ratchet-{name}:dev" for name in images.IMAGES)):
        print(f"image:   {image} {'present' if docker.image_exists(image) else 'absent'}")
    nodes = kindcluster.containers(settings)
    state = "healthy" if kindcluster.healthy(settings, 1) else "not healthy" if nodes else "absent"
    print(f"cluster: {settings.cluster} {state}, {len(nodes)} node(s), kubeconfig {settings.kubeconfig}")
    if state == "healthy":
        print(f"s3:      {s3.describe(settings)}")


def _tool(settings: Settings, arguments: argparse.Namespace) -> None:
    if tools.find(arguments.name, settings) is None:
        with _alone(settings), contextlib.redirect_stdout(sys.stderr):
            run_steps([tools.step(arguments.name, settings)], settings.logs)
    print(tools.path(arguments.name, settings))
