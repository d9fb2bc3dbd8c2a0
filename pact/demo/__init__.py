"""The phenomenon and the cure on a real model, in minutes on a CPU.

config         the settings
shipped        a wheel's GGUF  ->  the model as it was published
conversations  the data in data/
alignment      adapters, shipped or trained  ->  the aligned model
stages         safety tokens, three fine-tunings, measures
table          results  ->  text, and which targets are met
pictures       results  ->  PNG and SVG
page           all of it  ->  one HTML file
run            `run_demo`: from first to last
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pact.common.lazy import lazy_names
from pact.demo.config import DemoConfig

if TYPE_CHECKING:
    from pact.demo.run import run_demo

__all__ = ["DemoConfig", "run_demo"]

__getattr__ = lazy_names(__name__, {"run_demo": "pact.demo.run"})
