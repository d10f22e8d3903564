"""Samples of /metrics as Prometheus would scrape them, and the metrics documented in docs/metrics.md."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
_ROW = re.compile(r"\| `(corral_\w+)` \| (\w+) \|([^|]*)\|([^|]*)\|([^|]*)\|")
_PARTS = re.compile(r"_(bucket|count|sum)$")


class Documented(NamedTuple):
    type: str
    labels: frozenset[str]
    meaning: str


def documented() -> dict[str, Documented]:
    """The documented metrics by name."""
    rows = _ROW.findall(PAGE.read_text())
    return {
        name: Documented(kind, frozenset(re.findall(r"`(\w+)`", labels)), meaning.strip())
        for name, kind, labels, _unit, meaning in rows
    }


class Scrape:
    """The samples of one or several addresses at one moment."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = list(samples)

    def all(self, name: str, **labels: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()]

    def sum(self, name: str, **labels: str) -> float:
        """The sum, or 0 if there are no samples."""
        return sum(sample.value for sample in self.all(name, **labels))

    def rows(self, name: str, label: str) -> dict[str, float]:
        """The nonzero sums by the value of one label."""
        found: defaultdict[str, float] = defaultdict(float)
        for sample in self.all(name):
            found[sample.labels[label]] += sample.value
        return {value: count for value, count in found.items() if count}

    def require_documented(self) -> None:
        """Asserts that every sample has exactly the documented labels, and `le` for buckets."""
        known = documented()
        for sample in self.samples:
            if not sample.name.startswith("corral_"):
                continue
            family = sample.name if sample.name in known else _PARTS.sub("", sample.name)
            assert family in known, sample.name
            assert set(sample.labels) - {"le"} == known[family].labels, sample


async def scrape(*addresses: str) -> Scrape:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        answers = [await client.get(f"http://{address}/metrics") for address in addresses]
    return Scrape(sample for answer in answers for sample in _samples(answer))


def _samples(answer: httpx.Response) -> Iterable[Sample]:
    assert answer.status_code == 200, answer.text
    return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
