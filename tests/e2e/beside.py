"""A Prometheus beside the cluster that reads every pod of ours through the API server; and
prometheus-adapter, which makes of it the metrics API that HorizontalPodAutoscalers ask.
"""

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from cluster import Json, KubectlError, Namespace, eventually, gateway
from prometheus import CHART, Prometheus, program, scraping
from redisserver import free_port

EVERYWHERE = Namespace("default")
ADAPTER = "ratchet-custom-metrics"
METRIC = "ratchet_requests_per_second"
RULES = CHART / "rules" / "requests-per-second.yaml"


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
def beside_the_cluster(folder: Path, interval: str = "1s", address: str = "") -> Iterator[Prometheus]:
    """A Prometheus that follows the pods as they come and go; for `address` see `scraping`."""
    api, tls = server_of(folder)
    listed, ended = folder / "targets.json", threading.Event()

    def follow() -> None:
        while not ended.wait(1):
            (folder / "new").write_text(json.dumps(targets(api)))
            (folder / "new").replace(listed)

    listed.write_text(json.dumps(targets(api)))
    follower = threading.Thread(target=follow)
    follower.start()
    pods = {
        "job_name": "pods",
        "scheme": "https",
        "tls_config": tls,
        "file_sd_configs": [{"files": [str(listed)], "refresh_interval": "2s"}],
    }
    try:
        with scraping(folder, [pods], interval, address) as prometheus:
            yield prometheus
    finally:
        ended.set()
        follower.join()


@contextmanager
def requests_per_second(folder: Path, interval: str) -> Iterator[None]:
    """While it lasts the cluster's custom metrics API has `ratchet_requests_per_second` of every server.

    Args:
        folder: for configuration, data and logs.
        interval: of Prometheus, such as 5s.

    """
    host = gateway()
    with (
        beside_the_cluster(folder, interval) as prometheus,
        _adapter(folder, prometheus.address, host) as port,
        _registered(host, port),
    ):
        yield


@contextmanager
def _adapter(folder: Path, prometheus: str, host: str) -> Iterator[int]:
    """prometheus-adapter with the chart's rules, on an address of this machine that the nodes reach."""
    config, port, kubeconfig = folder / "adapter.yaml", free_port(), os.environ["KUBECONFIG"]
    config.write_text(yaml.safe_dump({"rules": yaml.safe_load(RULES.read_text())["rules"]["custom"]}))
    command = [
        program("prometheus-adapter"),
        f"--config={config}",
        f"--prometheus-url={prometheus}",
        "--metrics-relist-interval=5s",
        "--metrics-max-age=1m",
        f"--bind-address={host}",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'adapter'}",
        *(f"--{what}-kubeconfig={kubeconfig}" for what in ("lister", "authentication", "authorization")),
    ]
    with (folder / "adapter.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _registered(host: str, port: int) -> Iterator[None]:
    """The API group, served by this machine."""
    place, space = {"name": ADAPTER, "namespace": ADAPTER}, Namespace(ADAPTER)
    space.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ADAPTER}})
    space.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": {"ports": [{"port": 443}]}}
    )
    space.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**place, "labels": {"kubernetes.io/service-name": ADAPTER}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [host]}],
            "ports": [{"port": port}],
        }
    )
    versions = ("v1beta1", "v1beta2")
    names = [f"{version}.custom.metrics.k8s.io" for version in versions]
    for version, name in zip(versions, names, strict=True):
        spec = {
            "group": "custom.metrics.k8s.io",
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": place,
        }
        space.apply(
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": name},
                "spec": spec,
            }
        )
    try:
        eventually("the API answers", _answers, deadline=60)
        yield
    finally:
        # First: a group that nobody serves keeps every namespace from being deleted.
        EVERYWHERE.kubectl("delete", "apiservices", *names, "--ignore-not-found")
        EVERYWHERE.kubectl("delete", "namespace", ADAPTER, "--wait=false")


def _answers() -> bool:
    try:
        EVERYWHERE.kubectl("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2")
    except KubectlError:
        return False
    return True


def requests_of(namespace: str) -> dict[str, float]:
    """What the metrics API says of each server: requests a second by pod."""
    path = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/*/{METRIC}"
    try:
        items: list[Json] = json.loads(EVERYWHERE.kubectl("get", "--raw", path))["items"]
    except KubectlError:
        return {}
    return {item["describedObject"]["name"]: _number(item["value"]) for item in items}


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
