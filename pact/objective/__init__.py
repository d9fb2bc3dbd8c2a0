"""What training minimises: tensors in, `PactLoss` out; never a model or a tokenizer.

protocol        `Objective`: what the loops call
cross_entropy   ordinary fine-tuning
pact            cross-entropy and the pull on the safety tokens
config          `PactConfig`, its settings as flags and YAML keys see them
margin          a reference that is surer of the safety tokens, by a margin
"""

from __future__ import annotations

from pact.objective.config import PactConfig
from pact.objective.cross_entropy import CrossEntropy
from pact.objective.pact import PactObjective
from pact.objective.protocol import Objective

__all__ = ["CrossEntropy", "Objective", "PactConfig", "PactObjective"]
