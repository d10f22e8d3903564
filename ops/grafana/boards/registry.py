"""The control plane: replicas, jobs, pulls, and its loop."""

from __future__ import annotations

from ops.grafana.limits import CONTROL_TURN_S, MEMORY_OFF
from ops.grafana.panels import Board, Panel, Query, Row, percentile, percentiles, rate, ratio

REGISTRY = Board(
    uid="corral-registry",
    title="Corral: registry and pulls",
    text="What is wanted and what there is, and the work in between.",
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
                    "Placements that found no node, in five minutes",
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
                    text="0: it takes what placement reserved. Below 0 it takes less.",
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
                    "Jobs that ended, in five minutes",
                    [Query("sum by (kind, outcome) (increase(corral_jobs_total[5m]))", "{{kind}} {{outcome}}")],
                    stacked=True,
                ),
                Panel("Jobs that are open", [Query("sum by (kind) (corral_jobs_open)", "{{kind}}")], stacked=True),
                Panel(
                    "Duration of jobs, 95 of 100",
                    [
                        Query(
                            percentile(0.95, "corral_job_duration_seconds", by="kind"),
                            "{{kind}}",
                        )
                    ],
                    "s",
                ),
                Panel(
                    "Bytes that pulls brought",
                    [Query("sum by (node) (increase(corral_node_pulled_bytes_total[5m]))", "{{node}}")],
                    "bytes",
                ),
                Panel(
                    "Pulls, in five minutes",
                    [Query("sum by (outcome) (increase(corral_node_pulls_total[5m]))", "{{outcome}}")],
                    stacked=True,
                ),
                Panel(
                    "A pull takes, on average",
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
                Panel("Bytes, by node", [Query("sum by (node) (corral_node_store_bytes)", "{{node}}")], "bytes", stacked=True),
                Panel(
                    "Copies that the registry knows", [Query("sum by (node) (corral_blob_copies)", "{{node}}")], stacked=True
                ),
                Panel("Blobs that nodes hold", [Query("sum by (node) (corral_node_store_blobs)", "{{node}}")], stacked=True),
            ),
        ),
        Row(
            "Control loop",
            (
                Panel("A turn", percentiles("corral_control_turn_seconds"), "s", red_above=CONTROL_TURN_S),
                Panel(
                    "Decisions",
                    [Query(rate("corral_control_decisions_total", by="decision"), "{{decision}}")],
                    "ops",
                    stacked=True,
                ),
                Panel("Jobs that agents work on", [Query("sum by (node) (corral_node_jobs)", "{{node}}")], stacked=True),
                Panel("Nodes", [Query("sum by (state) (corral_nodes)", "{{state}}")], stacked=True, width=12),
                Panel("Leaders", [Query("sum(corral_registry_leader)", "leaders")], width=12, red_below=1),
            ),
        ),
    ),
)
