"""The phenomenon and the cure on a real model, in minutes on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pact.demo.config import DemoConfig
from pact.lazy import lazy_names

if TYPE_CHECKING:
    from pact.demo.run import run_demo

__all__ = ["DemoConfig", "run_demo"]

__getattr__ = lazy_names(__name__, {"run_demo": "pact.demo.run"})
