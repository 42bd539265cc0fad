"""medray: from raw medical data to a model that clinicians can question, by one study file, on Ray."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
_EXPORTS = {
    "run": "medray.pipeline",
    "Study": "medray.study",
    "Predictor": "medray.predictor",
    "Client": "medray.query",
}
__all__ = ["Client", "Predictor", "Study", "run"]  # exported lazily: importing medray costs nothing


def __getattr__(name: str) -> Any:
    """Import an export when it is first asked for."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'medray' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
