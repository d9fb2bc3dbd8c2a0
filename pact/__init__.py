"""PACT: fine-tune a chat model and keep the aligned model's confidence on a few safety tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact.config import PactConfig
    from pact.objective import PactObjective
    from pact.training import PactTrainer, train

__all__ = ["PactConfig", "PactObjective", "PactTrainer", "train"]

_HOME = {
    "PactConfig": "pact.config",
    "PactObjective": "pact.objective",
    "PactTrainer": "pact.training",
    "train": "pact.training",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import pact` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'pact' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
