"""The dashboards over a real rollout: a Prometheus beside the cluster reads every pod of ours through the API
server, and each panel has something to show.
"""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from arena import NAME, Arena
from cluster import Json, Namespace, eventually
from prometheus import DASHBOARDS, Prometheus, asked, panels, scraping

EVERYWHERE = Namespace("default")
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


def server_of(folder: Path) -> tuple[str, Json]:
    """Address of the API server, and how Prometheus proves who it is."""
    config = json.loads(EVERYWHERE.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    files = {
        "ca_file": cluster["certificate-authority-data"],
        "cert_file": user["client-certificate-data"],
        "key_file": user["client-key-data"],
    }
    for name, content in files.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(base64.b64decode(content))
    return urlsplit(cluster["server"]).netloc, {name: str(folder / name) for name in files}


def targets(address: str) -> list[Json]:
    """Every pod of ours that runs, with the labels that the chart's monitors add."""
    found: list[Json] = []
    pods = json.loads(
        EVERYWHERE.kubectl("get", "pods", "-A", "-l", "app.kubernetes.io/part-of=ratchet", "-o", "json")
    )["items"]
    for pod in pods:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        ports = [port for box in pod["spec"]["containers"] for port in box.get("ports", ())]
        if pod["status"]["phase"] != "Running" or "http" not in [port.get("name") for port in ports]:
            continue
        labels = {
            key.replace("/", "_").replace(".", "_").replace("-", "_"): value
            for key, value in pod["metadata"]["labels"].items()
            if key.startswith("ratchet.dev/")
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}:8080/proxy/metrics"
        labels |= {"namespace": namespace, "pod": name, "__metrics_path__": path}
        found.append({"targets": [address], "labels": labels})
    return found


@contextmanager
def beside_the_cluster(folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that follows the pods as they come and go."""
    address, tls = server_of(folder)
    listed, ended = folder / "targets.json", threading.Event()

    def follow() -> None:
        while not ended.wait(1):
            (folder / "new").write_text(json.dumps(targets(address)))
            (folder / "new").replace(listed)

    listed.write_text(json.dumps(targets(address)))
    follower = threading.Thread(target=follow)
    follower.start()
    pods = {
        "job_name": "pods",
        "scheme": "https",
        "tls_config": tls,
        "file_sd_configs": [{"files": [str(listed)], "refresh_interval": "2s"}],
    }
    try:
        with scraping(folder, [pods], "1s") as prometheus:
            yield prometheus
    finally:
        ended.set()
        follower.join()


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
