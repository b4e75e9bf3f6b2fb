"""The dashboards over a real rollout: a Prometheus beside the cluster reads every pod of ours through the API
server, and each panel has something to show.
"""

import time
from pathlib import Path
from typing import Any

from arena import NAME, Arena
from beside import beside_the_cluster
from cluster import Json, Namespace, eventually
from prometheus import DASHBOARDS, Prometheus, asked, panels

SILENT = {
    # Nothing is logged, refused or answered by another policy here, and the operator is well.
    "Decision log: rows lost per second",
    "Decision log: waits for S3",
    "Fallbacks per second",
    "Refused per second",
    "Failed steps and requests per second",
    "Pods that gave no answer, per second",
    "Changes that no watch told, per second",
}


def every_query(dashboards: set[str], namespace: str, name: str) -> dict[str, str]:
    """Those that have an answer where all is well."""
    return {
        f"{title}: {query}": asked(query, namespace, name, "10s")
        for dashboard in DASHBOARDS
        if dashboard.stem in dashboards
        for title, query in panels(dashboard)
        if title not in SILENT
    }


def assert_all_are_answered(prometheus: Prometheus, queries: dict[str, str], seconds: float) -> None:
    """Each at least once, at whatever time."""
    end = time.monotonic() + seconds
    while queries and time.monotonic() < end:
        queries = {key: query for key, query in queries.items() if not prometheus.query(query)}
    assert list(queries) == []
    assert prometheus.broken_rules() == []


def test_every_panel_shows_a_rollout_that_fails(s3: Any, s3_secret: Json, tmp_path: Path) -> None:
    with Namespace.fresh("t-dashboards", s3_secret) as namespace:
        arena = Arena(namespace, s3)
        arena.open("fair")
        queries = every_query({"ratchet-serving", "ratchet-operator"}, namespace.name, NAME)
        with beside_the_cluster(tmp_path) as prometheus:
            bad = arena.offer("worse")
            assert_all_are_answered(prometheus, queries, 150)
            assert arena.ended(bad)["outcome"] == "Failed"
            rolled_back = 'ALERTS{alertname="RatchetRolledBack",name="cartpole",outcome="Failed"}'
            eventually("the alert fires", lambda: prometheus.query(rolled_back))


def test_every_panel_shows_a_training(namespace: Namespace, endless: Json, tmp_path: Path) -> None:
    endless["spec"]["evaluation"] = {"everySteps": 2_000, "episodes": 1}
    namespace.apply(endless)
    with beside_the_cluster(tmp_path) as prometheus:
        assert_all_are_answered(
            prometheus, every_query({"ratchet-training"}, namespace.name, endless["metadata"]["name"]), 150
        )
