"""What `benchmarks/rollout.py` counts with: a release with a bug, and those who ask it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from ratchet.policies.artifact import write_folder

HACK = Path(__file__).parents[2] / "hack"
sys.path.insert(0, str(HACK))

from rollouts import cartpoles  # noqa: E402


def port_of(log: Path) -> int:
    """Where a server listens, once it says so."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            if '"message": "serving"' in line:
                return json.loads(line)["port"]
        time.sleep(0.02)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize(("share", "outcome"), [(0.0, "valid"), (1.0, "500")])
def test_what_a_broken_release_fails_is_what_its_askers_count(share: float, outcome: str, tmp_path: Path):
    library, policy = tmp_path / "library", tmp_path / "policy"
    library.mkdir()
    shutil.copy(HACK / "rollouts" / "broken.py", library / "sitecustomize.py")
    (library / "share").write_text(str(share))
    write_folder(cartpoles.balancing(), policy)
    serve = [sys.executable, "-c", "from ratchet_inference.main import main; main()", f"--policy={policy}"]
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*serve, "--host=127.0.0.1", "--port=0"],
            env={**os.environ, "PYTHONPATH": str(library)},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        url = f"http://127.0.0.1:{port_of(log)}"
        with subprocess.Popen(
            [sys.executable, HACK / "rollouts" / "askers.py", f"--url={url}", "--rate=200"],
            stdout=subprocess.PIPE,
            text=True,
        ) as askers:
            assert askers.stdout is not None
            reports = (json.loads(line) for line in askers.stdout)
            next(report for report in reports if report["valid"] + report["failed"] > 20)
            askers.send_signal(signal.SIGTERM)
            *_, last = reports
        with urlopen(f"{url}/metrics") as answer:  # noqa: S310 - our own
            samples = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
        server.terminate()
    told = [line.split() for line in log.read_text().splitlines() if line.startswith("asked ")]
    failed = last["requests"] if outcome == "500" else 0
    assert last["ended"]
    assert last["errors"] == ({"500": failed} if failed else {})
    assert last["valid"] == last["requests"] - failed
    assert (int(samples["asked_total"]), int(samples["failed_total"])) == (last["requests"], failed)
    assert sum(int(number) for _, number, _ in told) == last["requests"]
