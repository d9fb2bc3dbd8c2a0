"""Losses of a language model's head: selected-token KL and cross-entropy without full logits.

Needs torch alone; triton is imported only where a kernel runs. Each op is registered with
`torch.library`, so it works under autograd, autocast and `torch.compile(fullgraph=True)`.
"""

from pathlib import Path

from pact_kernels.dispatch import autotune, implementation, workspace
from pact_kernels.ops.linear_cross_entropy import linear_cross_entropy
from pact_kernels.ops.linear_logsumexp import linear_logsumexp
from pact_kernels.ops.pact_kl import pact_kl
from pact_kernels.ops.pact_loss import pact_loss
from pact_kernels.ops.selected_confidences import selected_confidences
from pact_kernels.ops.selected_logits import selected_logits
from pact_kernels.ops.token_scores import token_scores
from pact_kernels.types import GateConfig, PactLoss, ReferenceLogits, ReferenceStates

__all__ = [
    "GateConfig",
    "PactLoss",
    "ReferenceLogits",
    "ReferenceStates",
    "autotune",
    "implementation",
    "linear_cross_entropy",
    "linear_logsumexp",
    "pact_kl",
    "pact_loss",
    "selected_confidences",
    "selected_logits",
    "token_scores",
    "workspace",
]
__version__ = Path(__file__).with_name("VERSION").read_text(encoding="ascii").strip()
