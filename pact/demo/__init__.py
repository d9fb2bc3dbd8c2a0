"""The phenomenon and the cure on a real model, in minutes on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pact.demo.config import DemoConfig

if TYPE_CHECKING:
    from pact.demo.run import run_demo

__all__ = ["DemoConfig", "run_demo"]


def __getattr__(name: str) -> Any:
    """Import `run_demo` on first use, so that reading the settings loads no model code."""
    if name != "run_demo":
        raise AttributeError(f"module 'pact.demo' has no attribute {name!r}")
    from pact.demo.run import run_demo

    return run_demo
