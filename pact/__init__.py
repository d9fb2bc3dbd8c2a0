"""PACT: fine-tune a chat model and keep the aligned model's confidence on a few safety tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pact.common.lazy import lazy_names

if TYPE_CHECKING:
    from pact.integrations.transformers_models import patch, unpatch
    from pact.objective import PactConfig, PactObjective
    from pact.training import PactTrainer, train

__all__ = ["PactConfig", "PactObjective", "PactTrainer", "patch", "train", "unpatch"]
__version__ = (
    Path(__file__).parents[1].joinpath("pact_kernels/VERSION").read_text(encoding="ascii").strip()
)  # of both packages; importing the other one would load torch

__getattr__ = lazy_names(
    __name__,
    {
        "PactConfig": "pact.objective",
        "PactObjective": "pact.objective",
        "PactTrainer": "pact.training",
        "patch": "pact.integrations.transformers_models",
        "train": "pact.training",
        "unpatch": "pact.integrations.transformers_models",
    },
)
