"""Settings of the objective without what the recommended ones add."""

from __future__ import annotations

import math
from typing import Any

from pact.objective import PactConfig


def matching(over: Any = "selection", *, gate: bool = True, **changes: Any) -> PactConfig:
    """The reference as it is, matched in full: weight 1, every step alike, every token, no margin.

    Over the selection this is the released objective.
    """
    full = {"kl_weight": 1.0, "kl_step_tau": math.inf, "kl_margin": 0.0, "positive_only": False}
    return PactConfig(over=over, gate=gate, **(full | changes))
