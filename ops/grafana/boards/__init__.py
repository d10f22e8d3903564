"""The dashboards, one in each file. `python -m ops.grafana.build` writes them as JSON."""

from __future__ import annotations

from ops.grafana.boards.delivery import DELIVERY
from ops.grafana.boards.model import MODEL
from ops.grafana.boards.nodes import NODES
from ops.grafana.boards.overview import OVERVIEW
from ops.grafana.boards.queue import QUEUE
from ops.grafana.boards.registry import REGISTRY
from ops.grafana.boards.slo import SLO
from ops.grafana.boards.teams import TEAMS

BOARDS = (OVERVIEW, MODEL, NODES, QUEUE, DELIVERY, REGISTRY, TEAMS, SLO)
