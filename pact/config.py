"""`PactConfig` under the name that configs and scripts import it by; it lives in the objective."""

from __future__ import annotations

from pact.objective.config import DEFAULTS, PactConfig

__all__ = ["DEFAULTS", "PactConfig"]
