"""Dashboards and alerts: every query parses, asks for what is exported, and finds it; every alert fires."""

import asyncio
import re
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import get_args

import numpy as np
import pytest
import yaml
from policyserver import Broken, Pair, policy, serving
from prometheus import (
    DASHBOARDS,
    ROOT,
    RULES,
    alerts,
    asked,
    get,
    marks,
    metrics_in,
    panels,
    promtool,
    scraping,
)
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from ratchet_inference.decisions.log import DecisionLog
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from ratchet_operator.metrics import REGISTRY
from ratchet_operator.series import ObjectSeries
from ratchet_operator.web import Web
from ratchet_trainer.algorithms.ppo import Metrics as UpdateMetrics
from ratchet_trainer.board import Board
from ratchet_trainer.metrics import Metrics
from ratchet_trainer.web import serve
from redisserver import free_port
from test_operator_series import JOB, TRYING, cached
from test_trainer_process import TRAINING

from ratchet.api.v1alpha1.policydeployment import DecisionRecord, PastTrial
from ratchet.api.v1alpha1.trainingjob import EvaluationResult, Evaluations

NAMESPACE, DEPLOYMENT, TRAINED = "team", "cartpole", "job"
CASES = ROOT / "tests" / "data" / "alerts" / "ratchet.yaml"
NOON = "2026-01-01T12:00:00Z"
OBSERVATION = [0.1, -0.2, 0.3, 0.4]


@contextmanager
def operators_page() -> Iterator[int]:
    """What the operator answers on /metrics, about a rollout and a job."""
    loop, port = asyncio.new_event_loop(), free_port()
    objects = CollectorRegistry()
    objects.register(ObjectSeries(cached(TRYING, JOB)))
    web = Web(port, lambda: None, lambda: None, lambda: None, (REGISTRY, objects))
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(web.__aenter__(), loop).result(10)
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(web.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def trainers_page() -> Iterator[int]:
    """What a trainer answers on /metrics, after an update."""
    metrics = Metrics(NAMESPACE, TRAINED)
    progress = TRAINING.progress.model_copy(
        update={"learner_busy": 0.5, "policy_lag": 0.5, "mean_length": 9.0}
    )
    measured = EvaluationResult(
        steps=640, policy_version=5, episodes=2, mean_return=9.0, std_return=1.0, mean_length=9.0, time=NOON
    )
    status = TRAINING.model_copy(update={"progress": progress, "evaluation": Evaluations(latest=measured)})
    metrics.show(status, UpdateMetrics(*[0.1] * 9, epochs=1))
    server = serve(Board(status), metrics.registry, 0)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def servers_page(folder: Path) -> Iterator[int]:
    """What a policy server answers on /metrics, whose policy has begun to answer NaN, while requests come."""
    log = DecisionLog(folder)
    log.start()
    waits = Rewards(log.record_reward, RewardSettings(), time.time)
    spoiled = Broken(policy(), lambda one: one._replace(log_probability=np.full(len(one.action), np.nan)))
    with serving(Pair(spoiled, policy("b")), log, waits) as running:
        running.act(observation=[1])
        for _ in range(20):
            assert running.act(observation=OBSERVATION, episode="e")[1]["fallback"] == "previous"
        yield running.port


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, int]]:
    """Ports by component."""
    with ExitStack() as stack:
        yield {
            "operator": stack.enter_context(operators_page()),
            "trainer": stack.enter_context(trainers_page()),
            "server": stack.enter_context(servers_page(tmp_path_factory.mktemp("log"))),
        }


@pytest.fixture(scope="module")
def texts(pages: dict[str, int]) -> dict[str, str]:
    return {component: get(f"http://127.0.0.1:{port}/metrics") for component, port in pages.items()}


def names(text: str) -> set[str]:
    """Every name that a query may use, of families without a series too."""
    found: set[str] = set()
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
            family.type, ("",)
        )
        found |= {family.name + suffix for suffix in suffixes}
    return found


@dataclass(frozen=True)
class Told:
    """One row of the documents' table of metrics."""

    name: str
    type: str
    labels: frozenset[str]
    words: str


def told(text: str) -> list[Told]:
    """What a page tells of its metrics; labels are known where there are series."""
    found: list[Told] = []
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        labels = frozenset(label for sample in family.samples for label in sample.labels if label != "le")
        name = family.name + ("_total" if family.type == "counter" else "")
        found.append(Told(name, family.type.replace("unknown", "untyped"), labels, family.documentation))
    return found


def documented() -> dict[str, list[Told]]:
    """The tables of docs/observability.md by component."""
    tables: dict[str, list[Told]] = {}
    for part in (ROOT / "docs" / "observability.md").read_text().split("\n### ")[1:]:
        title, _, rest = part.partition("\n")
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in rest.splitlines()
            if line.startswith("| `ratchet_")
        ]
        tables[title.lower()] = [
            Told(name.strip("`"), kind, frozenset(re.findall(r"`(\w+)`", labels)), words)
            for name, kind, labels, words in rows
        ]
    return tables


@pytest.mark.parametrize("component", ["operator", "trainer", "server"])
def test_the_documents_tell_every_metric_as_it_is(texts: dict[str, str], component: str):
    rows = {row.name: row for row in documented()[component]}
    real = {one.name: one for one in told(texts[component])}
    assert rows.keys() == real.keys()
    for name, one in real.items():
        assert (rows[name].type, rows[name].words) == (one.type, one.words)
        assert rows[name].labels == one.labels or not one.labels, name


def test_the_documents_tell_every_alert():
    text = (ROOT / "docs" / "observability.md").read_text()
    rows = re.findall(r"^\| `(Ratchet\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]


ALL = [
    *((path.stem, *panel) for path in DASHBOARDS for panel in panels(path)),
    *(("mark", *mark) for path in DASHBOARDS for mark in marks(path)),
    *(("alert", rule["alert"], rule["expr"]) for rule in alerts()),
]


def test_what_dashboards_and_alerts_ask_for_is_exported(texts: dict[str, str]):
    exported = set[str]().union(*map(names, texts.values()))
    asked_for = {metric: (where, title) for where, title, query in ALL for metric in metrics_in(query)}
    assert {metric: by for metric, by in asked_for.items() if metric not in exported} == {}


@pytest.mark.parametrize("component", ["operator", "trainer", "server"])
def test_pages_are_as_prometheus_likes_them(texts: dict[str, str], component: str):
    done = promtool("check", "metrics", stdin=texts[component])
    assert done.returncode in (0, 3), done.stderr  # 3: style only
    style = [line for line in done.stderr.splitlines() if "should" in line]
    # `decisions` and `rewards` mix totals with what waits now, so they are of no type.
    assert [line for line in style if "untyped" not in line] == []


def test_rules_and_queries_parse(tmp_path: Path):
    recorded = [
        {"record": f"query:{number}", "expr": asked(query, NAMESPACE, DEPLOYMENT, "5m")}
        for number, (*_, query) in enumerate(ALL)
    ]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    for path in (RULES, tmp_path / "queries.yaml"):
        done = promtool("check", "rules", path)
        assert done.returncode == 0, done.stderr


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "runbook"}, rule["alert"]
        assert len(rule["annotations"]["runbook"]) > 80, rule["alert"]


def test_alerts_know_conditions_guards_and_reasons_by_the_names_that_the_operator_gives():
    """A reason that was renamed would wake somebody for a rollout that only waits as it was told to."""
    sources = (ROOT / "operator" / "ratchet_operator").rglob("*.py")
    words = set(re.findall(r'"(\w+)"', "".join(path.read_text() for path in sources)))
    words |= {*get_args(PastTrial.model_fields["outcome"].annotation)}
    words |= {*get_args(DecisionRecord.model_fields["verdict"].annotation)}
    for rule in alerts():
        matchers = re.findall(r'\b(?:condition|reason|outcome|verdict)!?=~?"([^"]+)"', rule["expr"])
        named = {word for matcher in matchers for word in matcher.split("|")}
        assert named <= words, rule["alert"]


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path):
    cases = yaml.safe_load(CASES.read_text())
    expected = [
        (one["alertname"], bool(one["exp_alerts"]))
        for case in cases["tests"]
        for one in case["alert_rule_test"]
    ]
    assert set(expected) == {(rule["alert"], fires) for rule in alerts() for fires in (True, False)}

    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]["runbook"]  # promtool compares annotations word by word
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases | {"rule_files": ["rules.yaml"]}))
    done = promtool("test", "rules", tmp_path / "cases.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


LABELS = {
    "operator": {},
    "trainer": {},
    "server": {
        "namespace": NAMESPACE,
        "pod": "cartpole-1-abc",
        "ratchet_dev_policy_deployment": DEPLOYMENT,
        "ratchet_dev_revision": "1",
    },
}
"""What the chart's monitors add."""


def test_a_prometheus_finds_an_answer_to_every_query(pages: dict[str, int], tmp_path: Path):
    queries: dict[tuple[str, str], str] = {}
    for where, title, query in ALL:
        name = TRAINED if where == "ratchet-training" else DEPLOYMENT
        queries[where, f"{title}: {query}"] = asked(query, NAMESPACE, name, "10s")
    # An alert that does not fire has no answer, and of the operator's counters most have not counted yet.
    sure = {key for key in queries if key[0] in ("ratchet-training", "ratchet-serving")}
    scrapes = [
        {
            "job_name": component,
            "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": LABELS[component]}],
        }
        for component, port in pages.items()
    ]
    with scraping(tmp_path, scrapes, "1s") as prometheus:
        missing, deadline = sure, time.monotonic() + 60
        while missing and time.monotonic() < deadline:
            missing = {key for key in missing if not prometheus.query(queries[key])}
        assert missing == set()
        for key in queries.keys() - sure:
            prometheus.query(queries[key])
        assert prometheus.broken_rules() == []
