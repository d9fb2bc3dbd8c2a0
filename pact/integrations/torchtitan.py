"""torchtitan's loss: the fused cross-entropy of states and head, where its chunked one would stand.

    config.loss = FusedCrossEntropyLoss.Config()        # of a Trainer.Config

torchtitan's trainer gives a `ChunkedLossWrapper` the model's `lm_head`, and has the model return
its states. A loss is given states and labels, not tokens, so the reference cannot be run from it:
here is the cross-entropy alone, without the pull on the safety tokens.

Written for torchtitan 0.3.0.

Legend: B sequences, L positions, T positions in one line, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, ChunkedLossWrapper

import pact_kernels as pk


class FusedCrossEntropyLoss(ChunkedLossWrapper):  # type: ignore[misc]
    """Sum of the cross-entropies of labelled positions, over the tokens of the whole step.

        loss = sum over labelled positions of (log sum_v exp(z_v) - z_label) / global_valid_tokens

    with z = hidden weight^T + bias, which is never formed as a whole. FSDP gathers the head once,
    and reduces its gradient in the backward that the trainer starts.

    Args:
        config: see `Config`; there are no chunks to count and no inner loss.
        compile_config: with "loss" among its components the operator is called through
            torch.compile.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):  # type: ignore[misc]
        """What a `Trainer.Config` has as its `loss`."""

        drop_ignored: bool = False
        """Leave ignored positions out of every product. On a GPU finding them waits for the device
        at each call, which a CUDA graph forbids; on a CPU they are left out anyhow."""

    def __init__(self, config: Config, *, compile_config: Any = None) -> None:
        self.drop_ignored = config.drop_ignored
        self.lm_head: nn.Linear | None = None
        self.fn: Callable[..., Tensor] = pk.linear_cross_entropy
        self._maybe_compile(compile_config)

    def set_lm_head(self, lm_head: nn.Module) -> None:
        """Take the model's head; the trainer calls it.

        Raises:
            ValueError: the head is more than weight and bias.
        """
        if getattr(type(lm_head), "forward", None) is not nn.Linear.forward:
            raise ValueError(
                "the head must be a linear layer's weight and bias alone, got "
                f"{type(lm_head).__name__}, which has a forward of its own: leave it out of "
                "converters, or use ChunkedLossWrapper"
            )
        super().set_lm_head(lm_head)

    def __call__(
        self,
        pred: Tensor,
        labels: Tensor,
        global_valid_tokens: Tensor | None = None,
        *,
        positions: Tensor | None = None,  # the trainer's to all losses; no term depends on it
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and no metrics.

        Args:
            pred: (B, L, D) or (T, D) states, fp32, bf16 or fp16, whole in D.
            labels: (B, L) or (T,) int64, already shifted, `IGNORE_INDEX` where there is none.
            global_valid_tokens: () the denominator; None leaves the sum.
            positions: not read.

        Returns:
            () fp32 and an empty dictionary.

        Raises:
            ValueError: no head was set, or it is sharded over the vocabulary.
        """
        head = self.lm_head
        if head is None:
            raise ValueError("the loss needs the model's head, got none: call set_lm_head first")
        if isinstance(head, FSDPModule):
            head.unshard()  # the model's forward has left it out
        _check_whole(pred, head)
        # (1, T, D) says that ignored positions may be looked for; (T, D) keeps them.
        lines = (1, -1) if self.drop_ignored else (-1,)
        hidden, targets = pred.reshape(*lines, pred.shape[-1]), labels.reshape(lines)
        loss = self.fn(
            hidden,
            head.weight,
            targets,
            bias=head.bias,
            ignore_index=IGNORE_INDEX,
            reduction="sum" if global_valid_tokens is None else "mean",
            num_items=global_valid_tokens,
        )
        if isinstance(head, FSDPModule) and not loss.requires_grad:
            head.reshard()  # else its backward does
        return loss, {}


def _check_whole(hidden: Tensor, head: nn.Linear) -> None:
    whole = (head.out_features, head.in_features)
    in_parts = isinstance(hidden, DTensor) or isinstance(head.weight, DTensor)
    if in_parts or tuple(head.weight.shape) != whole:
        raise ValueError(
            f"the head must be whole, {whole}, in every process, got "
            f"{type(head.weight).__name__} {tuple(head.weight.shape)} for states of type "
            f"{type(hidden).__name__}: set tensor_parallel_degree=1 and a spmd_backend other than "
            "full_dtensor, or use ChunkedLossWrapper"
        )
