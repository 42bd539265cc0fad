"""What both sorts of study say in the same words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping

CLASSES = 20  # more distinct values are no classes
DRAWN = "  # 20 % of the subjects are held out and 10 % of the rest tune the training, drawn by a fixed seed"
NEGATIVE = {"0", "no", "n", "false", "normal", "negative", "neg", "benign", "b", "healthy", "control", "none", "alive"}
AMBIGUOUS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # YAML 1.1 reads them as something else


def target(column: str, values: Iterable[str | None]) -> list[str]:
    """The target's lines: regression for many numbers, binary for two values, else one class a value."""
    seen = Counter(value for value in values if value is not None)
    if len(seen) > CLASSES and all(number(value) is not None for value in seen):
        return [
            f"  target: {{column: {text(column)}, kind: regression}}  # a number: it has more than {CLASSES} values"
        ]
    counts = ", ".join(f"{value}: {count:,}" for value, count in sorted(seen.items()))
    if len(seen) == 2:
        return [
            f"  # {counts}; `positive` is what is looked for",
            f"  target: {{column: {text(column)}, positive: {text(_positive(seen))}}}",
        ]
    return [f"  # {len(seen)} classes: {counts}", f"  target: {{column: {text(column)}}}"]


def _positive(seen: Mapping[str, int]) -> str:
    """The value that is not a usual word for "no"; else the rarer one."""
    candidates = [value for value in seen if value.lower() not in NEGATIVE]
    return candidates[0] if len(candidates) == 1 else min(seen, key=lambda value: (seen[value], value))


def number(value: str | None) -> float | None:
    """A cell as a number, if it is one."""
    try:
        return float(value) if value else None
    except ValueError:
        return None


def text(value: str) -> str:
    """As YAML has it: quoted, unless it is a plain word."""
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*", value) and value.lower() not in AMBIGUOUS
    return value if plain else json.dumps(value, ensure_ascii=False)


def listed(values: Iterable[str]) -> str:
    """A YAML list on one line."""
    return f"[{', '.join(map(text, values))}]"
