"""The machines and their accelerators."""

from __future__ import annotations

from ops.grafana.limits import GPU_CELSIUS, MEMORY_TAKEN
from ops.grafana.panels import Board, Panel, Query, Row, Variable, share

_ONE = 'node=~"$node"'


def _of_gpu(metric: str) -> list[Query]:
    return [Query(f"{metric}{{{_ONE}}}", "{{node}} {{gpu}}")]


NODES = Board(
    uid="corral-nodes",
    title="Corral: nodes and GPUs",
    text="CPU, memory, disk and accelerators of each node, and how much of them workers use.",
    variables=(Variable("node", "corral_node_cpu_cores"),),
    rows=(
        Row(
            "Machines",
            (
                share(
                    "CPU in use",
                    [
                        Query(
                            f"clamp_max(rate(corral_node_cpu_busy_seconds_total{{{_ONE}}}[$__rate_interval])"
                            f" / corral_node_cpu_cores{{{_ONE}}}, 1)",
                            "{{node}}",
                        )
                    ],
                ),
                share(
                    "Memory in use",
                    [
                        Query(
                            f"1 - corral_node_memory_available_bytes{{{_ONE}}} / corral_node_memory_bytes{{{_ONE}}}", "{{node}}"
                        )
                    ],
                    red_above=MEMORY_TAKEN,
                ),
                Panel(
                    "Disk for models",
                    [
                        Query(f"corral_node_disk_free_bytes{{{_ONE}}}", "{{node}} free"),
                        Query(f"corral_node_disk_bytes{{{_ONE}}}", "{{node}} total"),
                    ],
                    "bytes",
                ),
                Panel("Workers", [Query(f"corral_node_workers{{{_ONE}}}", "{{node}}")], stacked=True),
                Panel(
                    "Memory of workers, by model",
                    [Query(f"sum by (node, model) (corral_worker_memory_bytes{{{_ONE}}})", "{{node}} {{model}}")],
                    "bytes",
                    stacked=True,
                ),
                Panel(
                    "Accelerator memory used by loading, by model",
                    [Query(f"sum by (node, model) (corral_worker_device_memory_bytes{{{_ONE}}})", "{{node}} {{model}}")],
                    "bytes",
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Accelerators",
            (
                share("Utilization", _of_gpu("corral_node_gpu_utilization_ratio")),
                share(
                    "Memory in use",
                    [
                        Query(
                            f"corral_node_gpu_memory_used_bytes{{{_ONE}}} / corral_node_gpu_memory_bytes{{{_ONE}}}",
                            "{{node}} {{gpu}}",
                        )
                    ],
                ),
                Panel("Power", _of_gpu("corral_node_gpu_power_watts"), "watt"),
                Panel("Temperature", _of_gpu("corral_node_gpu_temperature_celsius"), "celsius", red_above=GPU_CELSIUS),
                Panel("Accelerator models", [Query(f"corral_node_gpu_info{{{_ONE}}}", "{{node}} {{gpu}}: {{name}}")]),
            ),
        ),
    ),
)
