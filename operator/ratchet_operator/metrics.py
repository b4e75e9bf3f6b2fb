"""The operator's own Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

RECONCILE_SECONDS = Histogram(
    "ratchet_reconcile_seconds",
    "Time of one step: observe, decide, execute.",
    ["kind"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge("ratchet_queue_depth", "Objects that wait for a step.", ["lane"], registry=REGISTRY)
QUEUE_OLDEST_SECONDS = Gauge("ratchet_queue_oldest_seconds", "How long the oldest waits.", registry=REGISTRY)
API_WRITES = Counter(
    "ratchet_api_writes_total", "Requests that change something.", ["verb", "kind"], registry=REGISTRY
)
API_READS = Counter("ratchet_api_reads_total", "Single reads and lists.", ["verb", "kind"], registry=REGISTRY)
EVENTS = Counter("ratchet_events_total", "Kubernetes Events written.", ["kind", "reason"], registry=REGISTRY)
POLLS_FAILED = Counter(
    "ratchet_polls_failed_total", "Pods that gave no answer when asked.", ["component"], registry=REGISTRY
)
ERRORS = Counter("ratchet_errors_total", "Failed steps and requests.", ["kind"], registry=REGISTRY)
WATCH_MISSED = Counter(
    "ratchet_watch_missed_total",
    "Changes that a resync found and no watch had told.",
    ["kind"],
    registry=REGISTRY,
)
HELD = Gauge("ratchet_waker_held_requests", "Requests that wait for servers to start.", registry=REGISTRY)
HELD_SECONDS = Histogram(
    "ratchet_waker_held_seconds",
    "From a request to the server that it was given to.",
    buckets=(0.01, 0.1, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60),
    registry=REGISTRY,
)
TURNED_AWAY = Counter(
    "ratchet_waker_turned_away_total", "Requests that no server was found for.", ["reason"], registry=REGISTRY
)
LEADER = Gauge("ratchet_leader", "1 while this process holds the Lease.", registry=REGISTRY)
OBJECTS = Gauge("ratchet_cached_objects", "Objects in the caches.", ["kind"], registry=REGISTRY)
