"""The loss of a patched model's forward, in the place of its `loss_function`: see `pact.patch`.

Legend: B sequences, L positions, L' of them kept, N answer rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import pact_kernels as pk
from pact.data.spans import IGNORE
from pact.models import (
    captured_states,
    causal_lm,
    evaluating,
    head_and_states,
    head_weight,
    output_head,
)
from pact.reference.live import AdaptersOff, FrozenModel, adapters_off

NUM_ITEMS = "num_items_in_batch"
Live = AdaptersOff | FrozenModel
"""The references that a patched model can be held to."""


class FusedLoss:
    """In place of a model's `loss_function`, for one forward.

    Args:
        causal: the patched model.
        given: the forward's arguments by name.
        states: filled by the head's turn.
    """

    def __init__(self, causal: Any, given: Mapping[str, Any], states: list[Tensor]) -> None:
        self.causal, self.given, self.states = causal, given, states
        self.calls = 0

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORE,
        shift_labels: Tensor | None = None,
        **unused: Any,  # as transformers' own takes what else the forward was given
    ) -> Tensor:
        self.calls += 1
        if len(self.states) != 1:
            raise ValueError(
                f"{type(self.causal).__name__} calls its output head {len(self.states)} times in a "
                "forward with labels: it cannot be patched; use pact.PactTrainer"
            )
        hidden = self.states[0]  # (B, L', D), or (N', D) where a mask keeps positions
        shifted = shift_labels
        if shifted is None:
            shifted = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]  # (B, L)
        shifted = shifted.reshape(-1, shifted.shape[-1]).to(hidden.device)
        is_row = shifted != ignore_index
        step = _steps(is_row, self.given.get("position_ids"))
        shifted, is_row, step = (
            self._kept(each, hidden.shape[:-1]) for each in (shifted, is_row, step)
        )
        if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() == 1:
            num_items_in_batch = num_items_in_batch.reshape(())
        places = is_row.nonzero(as_tuple=True)  # (N,) for each dimension
        state = self.causal._pact
        held_to = None
        if state.reference is not None:
            held_to = self._reference(state.reference, places)
        rows, head = head_and_states(self.causal, hidden[places])
        found: pk.PactLoss = state.objective(
            rows,
            head,
            shifted[places],
            step[places],
            held_to,
            num_items=num_items_in_batch,
        )
        state.loss = pk.PactLoss(*(part.detach() for part in found))
        return found.loss

    def _kept(self, values: Tensor, shape: torch.Size) -> Tensor:
        """(B, L) of all positions, or of those that are kept already, as the states' shape."""
        keep = self.given.get("logits_to_keep", 0)
        inputs = self.given.get("input_ids")
        inputs = self.given["inputs_embeds"] if inputs is None else inputs
        kept = values
        if values.shape[1] == inputs.shape[1]:  # of all
            if isinstance(keep, int):
                kept = values[:, -keep:]
            elif keep.dim() == 1:
                kept = values[:, keep]
            else:
                by_mask = keep.dtype == torch.bool
                kept = values[keep] if by_mask else values.take_along_dim(keep, 1)
        if kept.numel() != shape.numel():
            raise ValueError(
                "labels must be of the positions whose logits are kept, or of all, got "
                f"{tuple(values.shape)} for states {tuple(shape)}"
            )
        return kept.reshape(shape)

    @torch.no_grad()
    def _reference(self, reference: Live, places: tuple[Tensor, ...]) -> pk.ReferenceStates:
        """The frozen model's states of the rows, by its own forward on the same arguments.

        Raises:
            ValueError: the arguments hold what the student formed, which is not the reference's.
        """
        model = reference.model
        past = self.given.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            raise ValueError(
                "a loss against a reference needs whole sequences, got past_key_values: give the "
                "tokens from the first on"
            )
        if isinstance(reference, FrozenModel) and self.given.get("input_ids") is None:
            raise ValueError(
                "a frozen model embeds the tokens itself, got inputs_embeds alone: give input_ids"
            )
        given = {
            name: value
            for name, value in self.given.items()
            if name not in ("labels", "shift_labels", NUM_ITEMS, "past_key_values")
        }
        given["use_cache"] = False
        apart = adapters_off(model) if isinstance(reference, AdaptersOff) else evaluating(model)
        causal = causal_lm(model)
        if isinstance(reference, FrozenModel) and head_weight(causal).device != places[0].device:
            model.to(places[0].device)  # a trainer has moved the student since
        with apart, captured_states(causal) as states:
            # Its hooks, of parameters that are sharded for one, have run for the student already.
            type(causal).forward(causal, **given)
            head = output_head(causal)
        hidden = states[0].to(places[0].device)[places]  # (N, D)
        return pk.ReferenceStates(hidden, None, head.weight.detach(), head.bias)


def _steps(is_row: Tensor, position_ids: Tensor | None) -> Tensor:
    """(B, L) int64: the place of each row in its run of rows, from 0; a sequence begins a run."""
    begins = is_row.clone()
    begins[:, 1:] &= ~is_row[:, :-1]
    if position_ids is not None and position_ids.shape[-1] == is_row.shape[1]:
        begins |= is_row & (position_ids == 0).to(is_row.device)
    index = torch.arange(is_row.shape[1], device=is_row.device).expand_as(is_row)
    begin = torch.where(begins, index, 0).cummax(dim=1).values
    return torch.where(is_row, index - begin, 0)
