"""The second half of `make demo`: a policy is served, a better one takes over, and bad ones are taken out.

    PYTHONPATH=hack python -m rollouts.show NAME      # of a trained RLTrainingJob in the present namespace

Each act changes `spec.source` of one PolicyDeployment and is followed by `ratchet rollout status --watch`,
while players ask for 100 pushes a second. It ends with another code than 0 where an act does not end as told,
or where the players met anything but valid answers, or an episode of theirs changed its policy.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import Manifest
from ratchet.policies.artifact import DESCRIPTION, Artifact
from rollouts import bucket, cartpoles, deployment
from rollouts.audience import Audience
from rollouts.cartpoles import Stored
from rollouts.cluster import Kubectl, NotAsToldError, eventually

Json = dict[str, Any]
RATCHET = str(Path(sys.executable).with_name("ratchet"))
FOLDER = "demo"
# For one act, on a machine that does much else.
PATIENCE = "180s"
PROMOTED, ROLLED_BACK = 0, 1


@dataclass(frozen=True, slots=True)
class Bad:
    """A policy that must be taken out: what is wrong with it, and how it is made."""

    what: str
    make: Callable[[], Artifact]


BAD = (
    Bad("one that drops the pole", lambda: cartpoles.balancing(cartpoles.DROPS)),
    Bad("one that is many times slower", cartpoles.slow),
    Bad("one that sometimes answers NaN", cartpoles.not_a_number),
    Bad("one that crashes its server: it needs more memory than there is", cartpoles.too_large),
)


kubectl = Kubectl()


@dataclass(frozen=True, slots=True)
class Show:
    """One PolicyDeployment and its players.

    Args:
        name: of it, and of the job whose policies it serves.

    """

    name: str
    console: Console

    @property
    def audience(self) -> Audience:
        """The players."""
        return Audience(kubectl, self.name)

    def begin(self, source: Json) -> None:
        """Serves the first policy, and starts to play."""
        kubectl("delete", "policydeployment", self.name, "--ignore-not-found", "--wait")
        self._apply(deployment.manifest(self.name, source))
        self._follow(PROMOTED)
        self.audience.start("--rate=100", "--players=8")
        eventually("the players are answered", lambda: (r := self.audience.report()) and (r["valid"] and r))

    def act(self, words: str, source: Json, wanted: int) -> None:
        """Offers a policy and shows what becomes of it; `wanted` is the code that `ratchet` ends with."""
        self.console.print(f"\n[bold]{words}[/bold]")
        # A merge keeps what it is not told to take away.
        only = {"trainingJob": None, "checkpoint": None, **source}
        kubectl(
            "patch",
            "policydeployment",
            self.name,
            "--type=merge",
            "-p",
            json.dumps({"spec": {"source": only}}),
        )
        self._follow(wanted)
        self._live()

    def end(self) -> Json:
        """The players' last report."""
        report = self.audience.end(eventually)
        self.audience.stop()
        return report

    def _apply(self, manifest: Json) -> None:
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))

    def _follow(self, wanted: int) -> None:
        code = subprocess.run(
            [RATCHET, "rollout", "status", self.name, "--watch", "--timeout", PATIENCE], check=False
        ).returncode
        if code != wanted:
            raise NotAsToldError(f"this should have ended with code {wanted}, and ended with {code}")

    def _live(self) -> None:
        report = self.audience.report()
        if report is not None:
            self.console.print(
                f"players: {report['requests']:,} requests, {report['failed']} failed, "
                f"median {report['milliseconds']['p50']} ms",
                style="dim",
            )


def of_job(client: Any, name: str) -> Iterator[tuple[Stored, Manifest]]:
    """The checkpoints of a job that are still in its bucket, oldest first."""
    job = json.loads(kubectl("get", "rltrainingjob", name, "-o", "json"))
    uri = job["status"]["checkpoints"]["best"]["uri"]
    place, _, key = uri.removeprefix("s3://").partition("/")
    folder = key.rpartition("/")[0]
    for entry in client.list_objects_v2(Bucket=place, Prefix=f"{folder}/")["Contents"]:
        content = client.get_object(Bucket=place, Key=entry["Key"])["Body"].read()
        manifest = Manifest.model_validate_json(content)
        uri = f"s3://{place}/{entry['Key']}"
        yield (
            Stored(uri, f"sha256:{hashlib.sha256(content).hexdigest()}", manifest.blobs[DESCRIPTION].sha256),
            manifest,
        )


def play(show: Show, client: Any, job: str) -> tuple[Json, set[str]]:
    """All acts; the players' last report, and the policies that were taken out.

    Raises:
        NotAsToldError: one ended otherwise than it should.

    """
    (early, manifest), *later = of_job(client, job)
    if not later:
        raise NotAsToldError("the job kept one checkpoint only, so there is none that is better")
    best = json.loads(kubectl("get", "rltrainingjob", job, "-o", "json"))["status"]["checkpoints"]["best"]

    def made(bad: Bad) -> Stored:
        place = S3(bucket=deployment.BUCKET, prefix=FOLDER)
        return cartpoles.store(client, place, bad.what.replace(" ", "-").replace(":", ""), bad.make())

    with ThreadPoolExecutor(1) as pool:
        # The large ones take a while, in which something else can be shown.
        stored: list[Future[Stored]] = [pool.submit(made, bad) for bad in BAD]
        show.console.print(
            f"\n[bold]Now it is served, at first the checkpoint of step {manifest.steps:,}, which scores "
            f"{manifest.mean_return:.0f} of 500[/bold]"
        )
        show.begin(deployment.source(early))
        show.act(
            f"The job's best, of step {best['steps']:,}, scores {best['meanReturn']:.0f}: it takes over",
            {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": job}, "checkpoint": "Best"}},
            PROMOTED,
        )
        for bad, future in zip(BAD, stored, strict=True):
            show.act(f"Then {bad.what}", deployment.source(future.result()), ROLLED_BACK)
    return show.end(), {future.result().policy for future in stored}


def total(report: Json, taken_out: set[str], console: Console) -> bool:
    """Prints what the players met; whether that is what was promised."""
    changed: dict[str, int] = report["changed"]
    moved = sum(count for policy, count in changed.items() if policy not in taken_out)
    instead = report["fallbacks"].get("canary>stable", 0)
    table = Table(title="What the players met", title_justify="left", show_header=False)
    rows = {
        "requests": f"{report['requests']:,}",
        "failed": report["failed"],
        "answers that were not valid": len(report["invalid"]),
        "episodes that changed their policy": moved,
        "episodes that were freed from one that was taken out": sum(changed.values()) - moved,
        "answered by the policy before, instead of one on trial": f"{instead:,}",
        "milliseconds, median and 99 of 100": "{p50} and {p99}".format(**report["milliseconds"]),
    }
    for what, number in rows.items():
        table.add_row(what, str(number))
    console.print()
    console.print(table)
    return not (report["failed"] or report["invalid"] or moved)


def main() -> int:
    """Plays the acts; the exit code."""
    console = Console()
    show = Show(sys.argv[1], console)
    try:
        with bucket.reached() as client:
            as_promised = total(*play(show, client, sys.argv[1]), console)
    except NotAsToldError as error:
        console.print(f"\nNot as told: {error}", style="red", markup=False)
        return 1
    return 0 if as_promised else 1


if __name__ == "__main__":
    sys.exit(main())
