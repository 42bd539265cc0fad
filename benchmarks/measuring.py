"""What the benchmarks share: a claim with its rounds, a small table, a results file, an exit status."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Claim:
    """Ours beside the peer's, a figure a round each, in the order in which they were taken.

    `bar` is a bound on ours / peer, or with `beyond` on ours - peer; None: shown, not judged.
    """

    what: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float]
    bar: float | None = None
    at_least: bool = False
    beyond: bool = False

    def compared(self, ours: float, peer: float) -> float:
        return ours - peer if self.beyond else ours / peer

    @property
    def value(self) -> float:
        """Of the medians."""
        return self.compared(statistics.median(self.ours), statistics.median(self.peer))

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def told(self) -> dict[str, Any]:
        rounds = [self.compared(*pair) for pair in zip(self.ours, self.peer, strict=True)]
        return {
            "what": self.what,
            "unit": self.unit,
            "rounds": len(self.ours),
            "ours": spread(self.ours),
            "peer": spread(self.peer),
            "compared": "ours - peer" if self.beyond else "ours / peer",
            "of_medians": rounded(self.value),
            "round_by_round": spread(rounds),
            "bar": None if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}",
            "met": self.met,
        }


def arguments(about: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; nothing is judged")
    parser.add_argument("--rounds", type=int, default=0, help="of each side; the script's own number unless given")
    parser.add_argument("--results", type=Path, help="folder of the results file; of a quick run none is kept")
    return parser.parse_args()


def finish(name: str, claims: Sequence[Claim], chosen: argparse.Namespace, **facts: Any) -> None:
    """Print the table, write `<name>.json`, and end: 1 if a bar is missed."""
    told = [claim.told() for claim in claims]
    width = max(len(each["what"]) for each in told)
    print(f"\n{'':{width}}  {'ours':>9} {'peer':>9}  {'':15} {'min':>7} {'median':>7} {'max':>7}   bar")
    for each in told:
        figures = each["round_by_round"]
        met = "" if each["met"] is None or chosen.quick else "met" if each["met"] else "MISSED"
        print(
            f"{each['what']:{width}}  {each['ours']['median']:>9.4g} {each['peer']['median']:>9.4g}  "
            f"{each['unit']:15} {figures['min']:>7.3f} {each['of_medians']:>7.3f} {figures['max']:>7.3f}   "
            f"{each['bar'] or ''} {met}"
        )
    for fact, value in facts.items():
        print(f"{fact.replace('_', ' ')}: {value}")
    folder = chosen.results or (None if chosen.quick else RESULTS)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        result = {"name": name, "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"}
        result |= {"machine": machine(), "quick": chosen.quick, "claims": told, **facts}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")
    sys.exit(not chosen.quick and any(claim.met is False for claim in claims))


def spread(values: Sequence[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: rounded(value) for name, value in found.items()}


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def cpu_s() -> float:
    """CPU seconds of this process so far, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def machine() -> dict[str, Any]:
    """Where it was measured; a load above the number of CPUs means that others worked too."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
