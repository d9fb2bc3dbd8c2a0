"""Mean scores of every token over a set of answers, from one pass of both models.

Legend: B sequences, L positions, N answer rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

import pact_kernels as pk
from pact.common.progress import counted
from pact.data.batches import length_batches
from pact.data.collate import Collator
from pact.models import causal_lm, hidden_states, output_head
from pact_kernels.types import Head

Mode: TypeAlias = Literal["p_diff", "pref_logratio"]


class MeanScores(NamedTuple):
    """Means over samples of the means over a sample's answer rows."""

    difference: Tensor
    """(V,) fp64: how much more confident the aligned model is in each token, as the mode has it."""
    confidence: Tensor
    """(V,) fp64: the aligned model's probabilities."""
    num_samples: int
    """Samples with at least one row."""
    num_steps: int
    """Rows of all of them."""


class _Rows(NamedTuple):
    """The answer rows of a batch that count."""

    input_ids: Tensor  # (B, L) up to the last row's position: later tokens change no earlier state
    attention_mask: Tensor  # (B, L)
    sequence: Tensor  # (N,) the sample that a row belongs to
    position: Tensor  # (N,)
    num_samples: int  # those with a row


@torch.no_grad()
def mean_scores(
    aligned_model: nn.Module,
    base_model: nn.Module,
    dataset: Sequence[Mapping[str, Any]],
    *,
    mode: Mode,
    max_response_length: int,
    temperature: float,
    max_tokens: int,
    progress: bool,
) -> MeanScores:
    """Teacher-force the answers through both models; the arguments are those of `discover`.

    The longest samples go first. A batch holds whole samples and counts by their number, so the
    result does not depend on how they are batched. Sums over batches are kept in fp64.

    Raises:
        ValueError: the models cannot be compared, or no sample has an answer row.
    """
    head, base_head = comparable_heads(aligned_model, base_model)
    vocab_size = head.weight.shape[0]
    batches = length_batches(_lengths(dataset, vocab_size), max_tokens=max_tokens)
    collate = Collator((), pad_token_id=0, post_only=False)
    difference = torch.zeros(vocab_size, dtype=torch.float64)  # (V,), sum over samples
    confidence = torch.zeros_like(difference)  # (V,)
    num_samples = num_steps = 0
    for indices in counted(batches, len(batches), "discover", "batch", progress):
        rows = _first_rows(collate([dataset[n] for n in indices]), max_response_length)
        if rows.num_samples == 0:
            continue
        scores = pk.token_scores(
            _states(aligned_model, rows),
            head.weight,
            _states(base_model, rows),
            base_head.weight,
            rows.sequence.to(head.weight.device),
            mode=mode,
            temperature=temperature,
            aligned_bias=head.bias,
            base_bias=base_head.bias,
            softcap=head.softcap,
            logit_scale=head.logit_scale,
        )  # (V,), (V,), means over the batch's samples
        difference += rows.num_samples * scores[0].cpu().double()
        confidence += rows.num_samples * scores[1].cpu().double()
        num_samples += rows.num_samples
        num_steps += rows.sequence.numel()
    if num_samples == 0:
        raise ValueError(
            f"at least one sample must have an answer token within {max_response_length} steps, "
            f"got none of {len(dataset)}: encode conversations that end with an answer"
        )
    return MeanScores(difference / num_samples, confidence / num_samples, num_samples, num_steps)


def comparable_heads(aligned: nn.Module, base: nn.Module) -> tuple[Head, Head]:
    """Both output heads, if the models can be compared token by token.

    Raises:
        ValueError: vocabulary, soft cap, logit scale or device differ, or a model is in training
            mode, where dropout makes its confidences random.
    """
    heads = output_head(aligned), output_head(base)
    properties: dict[str, list[Any]] = {
        "vocabulary": [head.weight.shape[0] for head in heads],
        "soft cap": [head.softcap for head in heads],
        "logit scale": [head.logit_scale for head in heads],
        "device": [str(head.weight.device) for head in heads],
    }
    for name, (ours, theirs) in properties.items():
        if ours != theirs:
            raise ValueError(
                f"the aligned and the base model must have the same {name}, got {ours} "
                f"({model_name(aligned)}) and {theirs} ({model_name(base)}): give the model that "
                "the aligned one was made from, on the same device"
            )
    for model in (aligned, base):
        if model.training:
            raise ValueError(
                f"{model_name(model)} must be in evaluation mode, got training mode: call its "
                "eval() first"
            )
    return heads


def model_name(model: nn.Module) -> str:
    """The folder or hub name that the model was loaded from, else its class."""
    causal = causal_lm(model)
    return causal.config.name_or_path or type(causal).__name__


def _first_rows(batch: Mapping[str, Tensor], max_response_length: int) -> _Rows:
    counts = batch["row_step"] < max_response_length
    sequence, position = batch["row_sequence"][counts], batch["row_position"][counts]  # (N,), (N,)
    length = int(position.max()) + 1 if position.numel() else 0
    inputs = batch["input_ids"][:, :length], batch["attention_mask"][:, :length]
    return _Rows(*inputs, sequence, position, sequence.unique_consecutive().numel())


def _states(model: nn.Module, rows: _Rows) -> Tensor:
    """The backbone's states on the rows, (N, D)."""
    device = causal_lm(model).device
    states = hidden_states(model, rows.input_ids.to(device), rows.attention_mask.to(device))
    return states[rows.sequence.to(device), rows.position.to(device)]


def _lengths(dataset: Sequence[Mapping[str, Any]], vocab_size: int) -> list[int]:
    """Tokens of each example, all of them within the vocabulary."""
    lengths = []
    for row in dataset:
        largest = max(row["input_ids"], default=0)
        if largest >= vocab_size:
            raise ValueError(
                f"token ids must be below the models' vocabulary of {vocab_size}, got {largest}: "
                "encode the data with the aligned model's tokenizer"
            )
        lengths.append(len(row["input_ids"]))
    return lengths
