"""Writes the chart's Grafana dashboards: `python hack/dashboards.py`, or `--check` to compare only.

A dashboard is rows of panels, a panel is a title, a unit and queries; the rest of Grafana's JSON is the same
for all. Metrics of policy servers carry their pods' labels as Prometheus writes them, so
`ratchet_dev_policy_deployment` and `ratchet_dev_revision`.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "charts" / "ratchet" / "dashboards"
COLUMNS = 24
HEIGHT = 8
Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """Queries by legend. Of kind `state` each series is a strip, coloured where its value is 1; `limit` is
    drawn as a line.
    """

    title: str
    queries: dict[str, str]
    words: str = ""
    unit: str = "none"
    kind: str = "timeseries"
    width: int = 8
    limit: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """`of` is the metric whose label values the variables namespace and name take; `marks` are queries by
    legend, whose every answer is marked on all panels.
    """

    uid: str
    title: str
    words: str
    of: str
    rows: dict[str, list[Panel]]
    marks: dict[str, str] = field(default_factory=dict[str, str])


OBJECT = 'namespace="$namespace",name="$name"'
TRAINER = 'namespace="$namespace",job_name="$name"'
SERVER = 'namespace="$namespace",ratchet_dev_policy_deployment="$name"'


def job(metric: str, *by: str) -> str:
    return _max(f"ratchet_job_{metric}{{{OBJECT}}}", by)


def rollout(metric: str, *by: str, only: str = "") -> str:
    return _max(f"ratchet_rollout_{metric}{{{OBJECT}{only}}}", by)


def trainer(metric: str) -> str:
    return _max(f"ratchet_trainer_{metric}{{{TRAINER}}}")


def trained(metric: str) -> str:
    return _rate(f"ratchet_trainer_{metric}_total{{{TRAINER}}}")


def served(metric: str, *by: str, only: str = "") -> str:
    return _rate(f"ratchet_policy_{metric}{{{SERVER}{only}}}", by)


def by_arm(metric: str) -> str:
    """A rate as the pods that answer clients see it: a canary's own pods count what is sent on to them once
    more, and less of it.
    """
    return _max(served(metric, "arm", "ratchet_dev_revision"), ("arm",))


def share_by_arm(metric: str) -> str:
    """Of the requests answered; 0 where nothing was counted yet. A batch's rows are counted each."""
    requests = by_arm("requests_total")
    return f"clamp_max(({by_arm(metric)} or 0 * {requests}) / {requests}, 1)"


def latency(share: float) -> dict[str, str]:
    rates = served("latency_seconds_bucket", "arm", "ratchet_dev_revision", "le")
    return {"{{arm}} at {{ratchet_dev_revision}}": f"histogram_quantile({share}, {rates})"}


def operators(metric: str, *by: str) -> str:
    return _rate(f"ratchet_{metric}", by)


def _max(query: str, by: tuple[str, ...] = ()) -> str:
    return f"max by ({', '.join(by)}) ({query})" if by else f"max({query})"


def _rate(series: str, by: tuple[str, ...] = ()) -> str:
    total = f"(rate({series}[$__rate_interval]))"
    return f"sum by ({', '.join(by)}) {total}" if by else f"sum{total}"


LEARNING = [
    Panel(
        "Return",
        {
            "training, last 100 episodes": trainer("episode_return_mean"),
            "evaluation": trainer("evaluation_return_mean"),
        },
        width=12,
    ),
    Panel("Environment steps", {"steps": job("steps_total")}, "Each counted once.", width=6),
    Panel("Steps per second", {"accepted": trained("steps")}, "What the learner takes.", width=6),
    Panel("Episode length", {"steps": trainer("episode_length_mean")}),
    Panel("Losses", {"policy": trainer("policy_loss"), "value": trainer("value_loss")}),
    Panel(
        "Is the update healthy",
        {
            "approximate KL": trainer("approx_kl"),
            "clip fraction": trainer("clip_fraction"),
            "explained variance": trainer("explained_variance"),
            "entropy, nats": trainer("policy_entropy"),
        },
    ),
]
EXPERIENCE = [
    Panel("Workers", {"{{state}}": job("workers", "state"), "heard of by the learner": trainer("workers")}),
    Panel(
        "Policy lag",
        {"versions behind": trainer("policy_lag_versions")},
        "Mean age of the experience in a batch; 0 in mode Sync.",
    ),
    Panel(
        "Fragments per second",
        {what: trained(f"fragments_{what}") for what in ("accepted", "dropped", "duplicate")},
        "Dropped: damaged, or older than maxPolicyLag.",
    ),
    Panel("Learner busy", {"in updates": trainer("learner_busy_ratio")}, unit="percentunit"),
    Panel("Updates per second", {"updates": trained("updates")}),
    Panel("Policy version", {"version": trainer("policy_version")}),
]
SAFETY = [
    Panel(
        "Age of checkpoints",
        {"{{which}}": f"time() - {job('checkpoint_timestamp_seconds', 'which')}"},
        "What came after the latest would be lost if trainer and Redis went now.",
        unit="s",
    ),
    Panel(
        "Restarts",
        {"counted failures": job("failures_total")},
        "Failures that began another attempt.",
    ),
    Panel(
        "Conditions",
        {"{{condition}} {{status}} {{reason}}": job("condition", "condition", "status", "reason")},
        kind="state",
    ),
]
ROLLOUT = [
    Panel(
        "Share of new episodes",
        {"{{arm}}": rollout("weight_ratio", "arm")},
        "As observed at the pods.",
        unit="percentunit",
        width=12,
    ),
    Panel("Phase", {"{{phase}}": rollout("phase", "phase")}, kind="state", width=12),
    Panel(
        "Evidence against each bound",
        {"{{guard}}": f"{rollout('guard_odds', 'guard')} / {rollout('guard_odds_needed', 'guard')}"},
        "Odds over what is needed: a guard fails at 1.",
        width=12,
        limit=1,
    ),
    Panel(
        "Verdicts",
        {"{{guard}} {{verdict}}": rollout("guard_verdict", "guard", "verdict")},
        kind="state",
        width=12,
    ),
    Panel("Samples of the canary", {"{{guard}}": rollout("guard_samples", "guard", only=',arm="canary"')}),
    Panel(
        "Trials that ended",
        {
            "{{outcome}}": "max by (outcome) "
            f"(changes(ratchet_rollout_ended_timestamp_seconds{{{OBJECT}}}[$__range]))"
        },
        "Since the first, in the time shown. Failed and TimedOut were rolled back.",
        kind="stat",
    ),
    Panel(
        "Policies",
        {"{{arm}} {{digest}} {{revision}}": rollout("arm_info", "arm", "digest", "revision")},
        kind="state",
    ),
]
TRAFFIC = [
    Panel("Requests per second", {"{{arm}}": by_arm("requests_total")}, unit="reqps"),
    Panel(
        "Errors",
        {"{{arm}}": share_by_arm("errors_total")},
        "Failures of the policy or its server; clients got an answer all the same.",
        unit="percentunit",
    ),
    Panel(
        "Answers that came from elsewhere",
        {"{{arm}}": share_by_arm("fallbacks_total")},
        unit="percentunit",
    ),
    Panel("Latency, median", latency(0.5), "At the stable revision with the way to the canary.", unit="s"),
    Panel("Latency, 95%", latency(0.95), unit="s"),
    Panel("Latency, 99%", latency(0.99), unit="s"),
    Panel("Fallbacks per second", {"{{step}}: {{reason}}": served("fallbacks_total", "step", "reason")}),
    Panel(
        "Invalid answers per second",
        {
            "NaN, {{arm}}": by_arm("nan_answers_total"),
            "against the mask, {{arm}}": by_arm("mask_violations_total"),
        },
        "None of them was given.",
    ),
    Panel(
        "Refused per second",
        {"overload": served("shed_total"), "{{code}}": served("refusals_total", "code")},
    ),
]
CAPACITY = [
    Panel(
        "Pods",
        {"{{arm}} {{state}}": rollout("pods", "arm", "state")},
        "As many as autoscaling asks for, once they are alive.",
    ),
    Panel("Requests per second of each pod", {"{{pod}}": served("requests_total", "pod")}, unit="reqps"),
    Panel(
        "Connections and remembered episodes",
        {
            "connections": f"sum(ratchet_policy_connections{{{SERVER}}})",
            "episodes": f"sum(ratchet_policy_sessions{{{SERVER}}})",
        },
    ),
    Panel(
        "Decision log: rows lost per second",
        {"{{what}}": served("decisions", "what", only=',what=~"dropped.+"')},
    ),
    Panel(
        "Decision log: waits for S3",
        {"spooled": f'sum(ratchet_policy_decisions{{{SERVER},what="spooled_bytes"}})'},
        unit="bytes",
    ),
    Panel("Rewards per second", {"{{what}}": served("rewards", "what")}, "By what they found."),
]
WORK = [
    Panel("Leaders", {"leading": "sum(ratchet_leader)"}, width=6),
    Panel("Objects that wait", {"{{lane}}": "sum by (lane) (ratchet_queue_depth)"}, width=6),
    Panel("Longest wait", {"oldest": "max(ratchet_queue_oldest_seconds)"}, unit="s", width=6),
    Panel(
        "Step, 99%",
        {"{{kind}}": f"histogram_quantile(0.99, {operators('reconcile_seconds_bucket', 'kind', 'le')})"},
        unit="s",
        width=6,
    ),
    Panel(
        "Writes to the API server per second",
        {"{{verb}} {{kind}}": operators("api_writes_total", "verb", "kind")},
    ),
    Panel("Reads per second", {"{{verb}} {{kind}}": operators("api_reads_total", "verb", "kind")}),
    Panel("Failed steps and requests per second", {"{{kind}}": operators("errors_total", "kind")}),
    Panel("Events per second", {"{{kind}} {{reason}}": operators("events_total", "kind", "reason")}),
    Panel(
        "Pods that gave no answer, per second",
        {"{{component}}": operators("polls_failed_total", "component")},
    ),
    Panel("Changes that no watch told, per second", {"{{kind}}": operators("watch_missed_total", "kind")}),
    Panel("Objects in the caches", {"{{kind}}": "max by (kind) (ratchet_cached_objects)"}),
]
DASHBOARDS = (
    Dashboard(
        "ratchet-training",
        "Ratchet / Training",
        "Is it learning, how fast, from whom, and is it safe?",
        "ratchet_job_condition",
        {"Learning": LEARNING, "Experience": EXPERIENCE, "Safety": SAFETY},
    ),
    Dashboard(
        "ratchet-serving",
        "Ratchet / Serving",
        "Which policy serves, which is on trial, and what the evidence says.",
        "ratchet_rollout_phase",
        {"Rollout": ROLLOUT, "Traffic": TRAFFIC, "Capacity": CAPACITY},
        {"{{outcome}}": f"{rollout('ended_timestamp_seconds', 'outcome')} > time() - 30"},
    ),
    Dashboard("ratchet-operator", "Ratchet / Operator", "Does the operator keep up?", "", {"Work": WORK}),
)
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
KINDS = {"timeseries": "timeseries", "state": "state-timeline", "stat": "stat"}


def rendered(dashboard: Dashboard) -> Json:
    panels: list[Json] = []
    y = 0
    for row, shown in dashboard.rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }
        )
        x, y = 0, y + 1
        for panel in shown:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            place = {"x": x, "y": y, "w": panel.width, "h": HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
            x += panel.width
        y += HEIGHT
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.words,
        "tags": ["ratchet"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": [_mark(*mark) for mark in dashboard.marks.items()]},
        "templating": {"list": _variables(dashboard.of)},
        "panels": panels,
    }


def _panel(panel: Panel) -> Json:
    is_state = panel.kind == "state"
    thresholds = [{"color": "transparent", "value": None}, {"color": "green", "value": 1}]
    defaults: Json = {"unit": panel.unit}
    if is_state:
        defaults |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": thresholds}}
    else:
        defaults |= {"min": 0} if panel.unit in ("reqps", "percentunit", "s", "bytes") else {}
    if panel.limit is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.limit}]
        defaults |= {
            "thresholds": {"mode": "absolute", "steps": steps},
            "custom": {"thresholdsStyle": {"mode": "line"}},
        }
    return {
        "type": KINDS[panel.kind],
        "title": panel.title,
        "description": panel.words,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"showValue": "never"} if is_state else {},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _mark(legend: str, query: str) -> Json:
    return {
        "name": "Trials that ended",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": query,
        "titleFormat": legend,
        "step": "15s",
    }


def _variables(of: str) -> list[Json]:
    found: list[Json] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    if of:
        for name, query in (
            ("namespace", f"label_values({of}, namespace)"),
            ("name", f'label_values({of}{{namespace="$namespace"}}, name)'),
        ):
            found.append(
                {
                    "name": name,
                    "type": "query",
                    "datasource": DATASOURCE,
                    "definition": query,
                    "query": {"query": query, "refId": name},
                    "refresh": 2,
                    "sort": 1,
                }
            )
    return found


def main() -> None:
    check = "--check" in sys.argv[1:]
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.uid}.json"
        text = json.dumps(rendered(dashboard), indent=1) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} is out of date: run `make manifests`")


if __name__ == "__main__":
    main()
