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
    text="Processors, memory, disks and accelerators, and what workers take of them.",
    variables=(Variable("node", "corral_node_cpu_cores"),),
    rows=(
        Row(
            "Machines",
            (
                share(
                    "Processors that are busy",
                    [
                        Query(
                            f"clamp_max(rate(corral_node_cpu_busy_seconds_total{{{_ONE}}}[$__rate_interval])"
                            f" / corral_node_cpu_cores{{{_ONE}}}, 1)",
                            "{{node}}",
                        )
                    ],
                ),
                share(
                    "Memory that is taken",
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
                        Query(f"corral_node_disk_bytes{{{_ONE}}}", "{{node}} in all"),
                    ],
                    "bytes",
                ),
                Panel("Workers", [Query(f"corral_node_workers{{{_ONE}}}", "{{node}}")], stacked=True),
                Panel(
                    "Memory of workers",
                    [Query(f"sum by (node, model) (corral_worker_memory_bytes{{{_ONE}}})", "{{node}} {{model}}")],
                    "bytes",
                    stacked=True,
                ),
                Panel(
                    "Accelerators' memory that loading took",
                    [Query(f"sum by (node, model) (corral_worker_device_memory_bytes{{{_ONE}}})", "{{node}} {{model}}")],
                    "bytes",
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Accelerators",
            (
                share("Load", _of_gpu("corral_node_gpu_utilization_ratio")),
                share(
                    "Memory that is taken",
                    [
                        Query(
                            f"corral_node_gpu_memory_used_bytes{{{_ONE}}} / corral_node_gpu_memory_bytes{{{_ONE}}}",
                            "{{node}} {{gpu}}",
                        )
                    ],
                ),
                Panel("Power", _of_gpu("corral_node_gpu_power_watts"), "watt"),
                Panel("Temperature", _of_gpu("corral_node_gpu_temperature_celsius"), "celsius", red_above=GPU_CELSIUS),
                Panel("Which they are", [Query(f"corral_node_gpu_info{{{_ONE}}}", "{{node}} {{gpu}}: {{name}}")]),
            ),
        ),
    ),
)
