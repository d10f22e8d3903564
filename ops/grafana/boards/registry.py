"""The control plane: replicas, jobs, pulls, and its loop."""

from __future__ import annotations

from ops.grafana.limits import CONTROL_TURN_S, MEMORY_OFF
from ops.grafana.panels import Board, Panel, Query, Row, percentile, percentiles, rate, ratio

REGISTRY = Board(
    uid="corral-registry",
    title="Corral: registry and pulls",
    text="Replicas wanted and ready, the jobs that get there, and the control loop.",
    rows=(
        Row(
            "Replicas",
            (
                Panel("By state", [Query("sum by (state) (corral_replicas)", "{{state}}")], stacked=True),
                Panel(
                    "Wanted and ready",
                    [
                        Query("sum by (model) (corral_replicas_wanted)", "{{model}} wanted"),
                        Query('sum by (model) (corral_replicas{state="ready"})', "{{model}} ready"),
                    ],
                ),
                Panel(
                    "Failures in five minutes",
                    [Query("sum by (model, code) (increase(corral_replica_failures_total[5m]))", "{{model}} {{code}}")],
                    stacked=True,
                ),
                Panel(
                    "Restarts in five minutes",
                    [Query("sum by (model) (increase(corral_replica_restarts_total[5m]))", "{{model}}")],
                    stacked=True,
                ),
                Panel(
                    "Placements without a node in five minutes, by reason",
                    [Query("sum by (reason) (increase(corral_placement_refusals_total[5m]))", "{{reason}}")],
                    stacked=True,
                ),
                Panel(
                    "Memory against its estimate",
                    [
                        Query(
                            "corral_replica_memory_measured_bytes / corral_replica_memory_estimated_bytes - 1",
                            "{{model}} on {{node}}",
                        )
                    ],
                    "percentunit",
                    text="0: the replica uses the memory that placement reserved. Below 0: it uses less.",
                    least=None,
                    red_above=MEMORY_OFF,
                    red_below=-MEMORY_OFF,
                ),
            ),
        ),
        Row(
            "Jobs and pulls",
            (
                Panel(
                    "Jobs ended in five minutes",
                    [Query("sum by (kind, outcome) (increase(corral_jobs_total[5m]))", "{{kind}} {{outcome}}")],
                    stacked=True,
                ),
                Panel("Open jobs", [Query("sum by (kind) (corral_jobs_open)", "{{kind}}")], stacked=True),
                Panel(
                    "Job duration, p95",
                    [
                        Query(
                            percentile(0.95, "corral_job_duration_seconds", by="kind"),
                            "{{kind}}",
                        )
                    ],
                    "s",
                ),
                Panel(
                    "Bytes pulled in five minutes",
                    [Query("sum by (node) (increase(corral_node_pulled_bytes_total[5m]))", "{{node}}")],
                    "bytes",
                ),
                Panel(
                    "Pulls ended in five minutes",
                    [Query("sum by (outcome) (increase(corral_node_pulls_total[5m]))", "{{outcome}}")],
                    stacked=True,
                ),
                Panel(
                    "Average pull duration",
                    [
                        Query(
                            ratio(
                                "sum(increase(corral_node_pull_seconds_sum[1h]))",
                                "sum(increase(corral_node_pull_seconds_count[1h]))",
                            ),
                            "s",
                        )
                    ],
                    "s",
                ),
            ),
        ),
        Row(
            "Stores",
            (
                Panel(
                    "Store size, by node", [Query("sum by (node) (corral_node_store_bytes)", "{{node}}")], "bytes", stacked=True
                ),
                Panel(
                    "Blob copies that the registry knows, by node",
                    [Query("sum by (node) (corral_blob_copies)", "{{node}}")],
                    stacked=True,
                ),
                Panel(
                    "Blobs in the store, by node", [Query("sum by (node) (corral_node_store_blobs)", "{{node}}")], stacked=True
                ),
            ),
        ),
        Row(
            "Control loop",
            (
                Panel("Turn duration", percentiles("corral_control_turn_seconds"), "s", red_above=CONTROL_TURN_S),
                Panel(
                    "Decisions",
                    [Query(rate("corral_control_decisions_total", by="decision"), "{{decision}}")],
                    "ops",
                    stacked=True,
                ),
                Panel("Jobs running, by node", [Query("sum by (node) (corral_node_jobs)", "{{node}}")], stacked=True),
                Panel("Nodes", [Query("sum by (state) (corral_nodes)", "{{state}}")], stacked=True, width=12),
                Panel("Leaders", [Query("sum(corral_registry_leader)", "leaders")], width=12, red_below=1),
            ),
        ),
    ),
)
