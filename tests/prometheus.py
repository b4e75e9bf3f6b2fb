"""The Prometheus that the project builds, and the dashboards' queries as it is asked them."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from redisserver import free_port

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "ratchet"
RULES = CHART / "rules" / "ratchet.yaml"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))


@cache
def program(name: str) -> str:
    """Path of promtool or prometheus. The test is skipped where it is not there and can't be built."""
    made = subprocess.run(
        ["hack/cluster", "tool", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"hack/cluster tool {name}: {(made.stderr or made.stdout).strip()[-400:]}")
    return made.stdout.strip().splitlines()[-1]


def promtool(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def panels(dashboard: Path) -> list[tuple[str, str]]:
    """Title and query of every panel."""
    return [
        (panel["title"], target["expr"])
        for panel in json.loads(dashboard.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def marks(dashboard: Path) -> list[tuple[str, str]]:
    """Name and query of what is marked on all panels."""
    return [(one["name"], one["expr"]) for one in json.loads(dashboard.read_text())["annotations"]["list"]]


def asked(query: str, namespace: str, name: str, window: str) -> str:
    """A query as Grafana sends it."""
    for variable, value in {
        "$__rate_interval": window,
        "$__range": window,
        "$namespace": namespace,
        "$name": name,
    }.items():
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def metrics_in(query: str) -> set[str]:
    """The names of metrics in a query; label names that begin alike are left out."""
    bare = re.sub(r"\{[^}]*\}|\b(?:by|on|without)\s*\([^)]*\)", "", query)
    return set(re.findall(r"\bratchet_\w+", bare))


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return answer.read().decode()


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    address: str

    def query(self, query: str) -> list[Any]:
        """The series that answer.

        Raises:
            AssertionError: the question is wrong.

        """
        return self._ask(f"query?{urllib.parse.urlencode({'query': query})}")["result"]

    def broken_rules(self) -> list[str]:
        """What went wrong with rules."""
        rules = [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]
        return [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule.get("lastError")]

    def _ask(self, path: str) -> Any:
        try:
            return json.loads(get(f"{self.address}/api/v1/{path}"))["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None


@contextmanager
def scraping(
    folder: Path, scrapes: list[dict[str, Any]], interval: str, address: str = ""
) -> Iterator[Prometheus]:
    """A Prometheus with the chart's rules that reads these targets, and leaves their labels as they are.

    Args:
        folder: for its configuration, data and log.
        scrapes: its targets.
        interval: between two scrapes, such as 1s.
        address: host:port where it listens; by default one that only this machine reaches.

    """
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"honor_labels": True, **scrape} for scrape in scrapes],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = address or f"127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        command = [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not _is_ready(address):
            late = process.poll() is not None or time.monotonic() > deadline
            assert not late, (folder / "log").read_text()
            time.sleep(0.05)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(address: str) -> bool:
    try:
        return bool(get(f"http://{address}/-/ready"))
    except OSError:
        return False
