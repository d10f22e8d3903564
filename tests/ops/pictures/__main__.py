"""`python -m tests.ops.pictures FOLDER`: pictures of the dashboards, for docs/dashboards.md.

Three teams chat with a real `corral up`, at a rate that two cores can just serve, and a worker is killed once. Grafana's own
components (from npm, in the tests' cache) draw the data of a real Prometheus in a headless Chromium, panel by panel as in the
dashboards' JSON. Needs `npm` and `chromium`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from ops.grafana.boards import BOARDS
from ops.grafana.build import FOLDER as DASHBOARDS
from ops.grafana.panels import Board, Query
from tests.conftest import CACHE, smollm2
from tests.end_to_end.conftest import SMOLLM2, Platform, start_platform
from tests.ops.rehearsal import Prometheus, make_key, prometheus

HERE = Path(__file__).parent
PACKAGES = CACHE / "grafana-panels"
#: The highest priority of each team, and the weight of its key.
TEAMS = {"core": ("interactive", "2"), "research": ("normal", "1"), "nightly": ("batch", "0.5")}
#: A team's mean pause between two questions.
PAUSE_S = 2.5
WIDTH = 1408
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
CHROMIUM += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
]
LOADERS = [
    f"--loader:.{kind}={how}" for kind, how in (("svg", "text"), ("ttf", "empty"), ("woff2", "dataurl"), ("png", "dataurl"))
]


class Team(threading.Thread):
    """Asks, reads the answer and pauses, until `ending` is set."""

    def __init__(self, url: str, key: str, name: str, priority: str, ending: threading.Event) -> None:
        super().__init__(daemon=True)
        headers = {"authorization": f"Bearer {key}", "x-priority": priority}
        self._http = httpx.Client(base_url=url, timeout=120, trust_env=False, headers=headers)
        self._begins = f"You work for {name}. " + " ".join(f"Rule {number} of {name}: be kind." for number in range(10))
        self._chance = random.Random(name)
        self._ending = ending

    def run(self) -> None:
        while not self._ending.wait(self._chance.expovariate(1 / PAUSE_S)):
            with suppress(httpx.HTTPError):
                self._ask()
        self._http.close()

    def _ask(self) -> None:
        question = f"{self._begins} Say the number {self._chance.randrange(1000)}."
        options: dict[str, Any] = {"num_predict": self._chance.choice((24, 48, 96)), "stop": []}
        self._http.post(
            "/api/generate", json={"model": SMOLLM2, "prompt": question, "raw": True, "stream": False, "options": options}
        )


def load(platform: Platform, *, seconds: float) -> None:
    ending = threading.Event()
    teams = [
        Team(platform.url, make_key(platform, name, "--team", name, "--weight", weight), name, priority, ending)
        for name, (priority, weight) in TEAMS.items()
    ]
    for team in teams:
        team.start()
    time.sleep(seconds * 0.3)
    platform.corral("pull", str(smollm2()), "--as", "smollm2:copy")
    time.sleep(seconds * 0.3)
    kill_a_worker(platform)
    time.sleep(seconds * 0.4)
    ending.set()
    for team in teams:
        team.join(120)


def kill_a_worker(platform: Platform) -> None:
    with httpx.Client(base_url=platform.url, timeout=60, trust_env=False) as http:
        ready = [row for row in http.get("/registry/v1/replicas").json()["replicas"] if row["state"] == "ready"]
        http.post(f"/registry/v1/replicas/{ready[0]['id']}/kill").raise_for_status()


def shown(board: Board, server: Prometheus, started: float, ended: float) -> dict[str, Any]:
    """The dashboard for page.jsx, and the data of its panels by their ids. Panels without data on this machine are left out."""
    dashboard = json.loads((DASHBOARDS / f"{board.uid}.json").read_text())
    series: dict[int, list[dict[str, Any]]] = {}
    panels = []
    for number, panel in enumerate(dashboard["panels"]):
        panel["id"] = number
        series[number] = [
            {"legend": row.legend, "times": [at * 1000 for at in row.times], "values": row.values}
            for target in panel.get("targets", ())
            for row in server.range(Query(target["expr"], target["legendFormat"].removeprefix("__auto")), started, ended)
        ]
        if "corral_node_gpu_" not in json.dumps(panel) and panel["title"] != "Accelerators":
            panels.append(panel)
    return {"dashboard": dashboard | {"panels": panels}, "series": series, "from": started * 1000, "to": ended * 1000}


def height(dashboard: dict[str, Any]) -> int:
    """The dashboard's height in pixels, as in page.jsx."""
    rows: float = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    return math.ceil(rows * 38 + 8)


def build_page() -> None:
    PACKAGES.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "page.jsx"):
        shutil.copy(HERE / name, PACKAGES)
    install = ["npm", "install", "--no-audit", "--no-fund", "--legacy-peer-deps", "--ignore-scripts"]
    subprocess.run(install, cwd=PACKAGES, check=True, stdout=subprocess.DEVNULL)
    bundle = ["node_modules/.bin/esbuild", "page.jsx", "--bundle", "--outfile=page.js", "--minify", "--jsx=automatic", *LOADERS]
    bundle += ['--define:process.env.NODE_ENV="production"', "--define:global=window", "--log-level=warning"]
    subprocess.run(bundle, cwd=PACKAGES, check=True)
    links = '<link rel="stylesheet" href="page.css"><div id="page"></div><script src="data.js"></script><script src="page.js"></script>'
    (PACKAGES / "page.html").write_text(f'<!doctype html><meta charset="utf-8">{links}')


def draw(content: dict[str, Any], picture: Path) -> None:
    (PACKAGES / "data.js").write_text(f"window.shown = {json.dumps(content)};")
    size = f"--window-size={WIDTH},{height(content['dashboard'])}"
    command = [*CHROMIUM, size, "--virtual-time-budget=8000", f"--screenshot={picture}", (PACKAGES / "page.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder for the pictures")
    parser.add_argument("--seconds", type=float, default=400, help="duration of the load (400)")
    arguments = parser.parse_args()
    build_page()
    with tempfile.TemporaryDirectory(prefix="corral-pictures-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        platform = start_platform(folder / "home", CORRAL_SLOTS="4", CORRAL_CONTEXT_TOKENS="2048")
        try:
            with prometheus(folder, platform.url) as server:
                platform.corral("deploy", SMOLLM2, "--replicas", "1")
                started = time.time()
                load(platform, seconds=arguments.seconds)
                contents = {board.uid: shown(board, server, started, time.time()) for board in BOARDS}
        finally:
            platform.stop()
    for uid, content in contents.items():
        draw(content, arguments.folder.resolve() / f"{uid}.png")


if __name__ == "__main__":
    main()
