"""`ratchet-inference`: one policy server process, configured by flags and RATCHET_… variables."""

import asyncio
import gc
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Small matrices gain nothing from threads, and one process is one core's. numpy reads these when imported.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import uvloop  # noqa: E402 - after the variables above
from pydantic import ValidationError  # noqa: E402

from ratchet.api.v1alpha1 import ExitCode  # noqa: E402
from ratchet.api.v1alpha1.serverstats import Route  # noqa: E402
from ratchet.lastwords import leave  # noqa: E402
from ratchet.logs import write_json_lines  # noqa: E402
from ratchet.policies.sources import Server, in_bucket  # noqa: E402
from ratchet_inference.admin import PolicyRequest  # noqa: E402
from ratchet_inference.decisions.rewards import Rewards, RewardSettings  # noqa: E402
from ratchet_inference.problems import Problem  # noqa: E402
from ratchet_inference.residents import Residents  # noqa: E402
from ratchet_inference.server import PolicyServer  # noqa: E402
from ratchet_inference.settings import Settings, WrongSettings  # noqa: E402

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0


def main() -> None:
    """Serves until asked to end; exits with 0, or with a code of `ExitCode`."""
    write_json_lines()
    sys.exit(run(sys.argv[1:], os.environ))


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Serves until asked to end; the exit code."""
    try:
        settings = Settings.read(arguments, environment)
        _allow_connections(settings.max_connections)
        uvloop.run(_serve(settings))
    except (WrongSettings, Problem, OSError) as error:
        return leave(environment, ExitCode.CONFIG, str(error), log)
    return 0


async def _serve(settings: Settings) -> None:
    # Requests leave no cycles, and nobody is answered while the collector looks for them: 20 ms for 65,536
    # episodes. So it looks at what is new, often enough to stay short, and seldom at all there is.
    gc.set_threshold(2_000, 5, 100)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    decisions = None
    if settings.decisions:
        # pyarrow takes 0.4 s and 40 MB, which a server without a log does not need.
        from ratchet_inference.decisions.log import DecisionLog

        destination = settings.bucket(settings.decisions) or Path(settings.decisions)
        decisions = DecisionLog(destination, spool=Path(settings.spool))
        decisions.start()
    rewards = None
    if settings.rewards:
        waits = RewardSettings(window=settings.reward_seconds, default=settings.default)
        rewards = Rewards(decisions.record_reward if decisions else None, waits, time.time)
    residents = Residents(
        Path(settings.cache) if settings.cache else None,
        Server(settings.s3_endpoint or None, settings.s3_region),
        max_batch=settings.max_batch,
    )
    server = PolicyServer(settings, residents, rewards, decisions)
    if settings.route_file:
        server.dispatch.set_route(_route(Path(settings.route_file)))
    await server.start()
    loading = asyncio.create_task(_load(settings, server))
    ticking = asyncio.create_task(tick(rewards)) if rewards else None
    ended = asyncio.create_task(ending.wait())
    try:
        await asyncio.wait({loading, ended}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            await ended
    finally:
        loading.cancel()
        await server.drain()
        if ticking:
            ticking.cancel()
        if decisions:
            await decisions.close()


async def tick(rewards: Rewards, seconds: float = 1.0) -> None:
    """Ends the waits for rewards on a server that nobody asks, too."""
    while True:
        await asyncio.sleep(seconds)
        rewards.tick()


async def _load(settings: Settings, server: PolicyServer) -> None:
    """Loads the first policy, however long its bucket is gone.

    Raises:
        Problem: it is there, and can't be served; or its bucket will refuse it until somebody corrects that.

    """
    if not settings.policy:
        log.warning("no --policy: waits for PUT /v1/policy")
        return
    pause = FIRST_PAUSE
    while server.residents.current is None:
        try:
            request = PolicyRequest(source=settings.policy, digest=settings.digest or None)
            await server.admin.swap(request, first=True)
        except Problem as problem:
            if problem.code != "artifact-unavailable" or not in_bucket(settings.policy):
                raise
            log.warning("no policy yet", extra={"fields": {"why": problem.message, "pause": pause}})
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)
    # Modules, tables and the policy stay: the collector need not look at them again.
    gc.freeze()


def _route(file: Path) -> Route:
    """The route that a file holds.

    Raises:
        WrongSettings: it holds none.

    """
    try:
        return Route.model_validate_json(file.read_bytes())
    except OSError as error:
        raise WrongSettings(f"the route file {file} can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its root"
        raise WrongSettings(f"the route file {file} is wrong at {where}: {first['msg']}") from error


def _allow_connections(number: int) -> None:
    """Raises the limit of open files as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
