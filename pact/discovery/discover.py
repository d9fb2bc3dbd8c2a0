"""Find the safety tokens: teacher-force answers through the aligned and the base model.

Legend: V vocabulary, K safety tokens.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pact import __version__
from pact.common.fields import COUNT, check_fields
from pact.common.outputs import check_new_file
from pact.common.settings import user_path
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.discovery.scores import Mode, mean_scores, model_name
from pact.discovery.tokens import SafetyTokens, tokenizer_hash
from pact.models import check_head, head_weight
from pact.models.files import check_json, loading
from pact.models.loading import ADAPTERS_FILE, OWN_BASE, has_adapters, load_model, load_tokenizer

LITTLE = 0.1
"""Part of the largest confidence that some token's must change by, lest a warning is given."""

logger = logging.getLogger(__name__)

BOUNDS = dict.fromkeys(("max_response_length", "num_samples", "max_length", "max_tokens"), COUNT)
"""Bounds of settings that are counts; `discover` has those of the others."""


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig:
    """Which models and refusals to compare, and how many tokens to keep."""

    aligned: str
    """The aligned chat model, a folder or a hub name; its tokenizer and template read the data."""
    base: str
    """The model it was aligned from, with the same vocabulary. Where that is not at hand: the
    aligned model after a plain fine-tuning without refusals in its data, such as the adapters of
    `pact train --method plain`, which are merged; what it broke is where the tokens are."""
    data: str
    """Harmful prompts with the refusals that the aligned model gives them."""
    split: str | None = None
    """Which split of data, where it has several; it must be named then."""
    subset: str | None = None
    """Which configuration of a data set that has several."""
    columns: dict[str, str] | None = None
    """What the data call the columns that are read, such as {"instruction": "question", "output":
    "answer"}; see `pact.data.forms` for their names."""
    fold_system: bool = False
    """Put a system turn into the user's first one where the chat template has none."""
    skip_bad_rows: bool = False
    """Leave out rows that are malformed or that the template has no room for, and count them."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as {"enable_thinking": false}."""
    output: str
    """The file of safety tokens to write."""
    overwrite: bool = False
    """Replace the output if it is there."""
    mode: Mode = "p_diff"
    """Score of a token: P_aligned - P_base, or P_aligned (log P_base - log P_aligned)."""
    top_k: int = 50
    """Tokens to keep, by the aligned model's mean confidence in them."""
    max_response_length: int = 64
    """Answer tokens of each sample that count."""
    num_samples: int = 512
    """Most samples to take from the data; the seed draws them."""
    temperature: float = 1.0
    """Divides both models' logits."""
    max_length: int = 2048
    """Tokens kept of a conversation, from its beginning."""
    max_tokens: int = 8192
    """Positions in one forward pass, padding included."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the models; the scores are fp32 in any case."""
    seed: int = 0
    """Draws the samples."""

    def __post_init__(self) -> None:
        check_fields(self, BOUNDS)
        _check_settings(self.mode, self.top_k, self.max_response_length, self.temperature)


OF_ITS_INPUTS = (
    "aligned",
    "base",
    "data",
    "split",
    "subset",
    "columns",
    "fold_system",
    "chat_template_kwargs",
    "dtype",
    "seed",
)
"""Settings that the file of tokens records beside those of the scores."""


def run_discover(config: DiscoverConfig) -> SafetyTokens:
    """Load what `config` names, find the safety tokens, and save them.

    Raises:
        ValueError: the output exists, the data or a model are missing, or the tokenizers differ,
            all found before a model is loaded; and what `discover` refuses.
    """
    output = user_path(config.output)
    check_new_file(output, overwrite=config.overwrite, inputs={"data": config.data})
    tokenizer = load_tokenizer(_with_tokenizer(config.aligned), config.chat_template_kwargs)
    _check_tokenizers(tokenizer, load_tokenizer(_with_tokenizer(config.base)), config)
    conversations = load_examples(
        config.data,
        split=config.split,
        subset=config.subset,
        columns=config.columns,
        skip_bad_rows=config.skip_bad_rows,
    )
    size = min(config.num_samples, len(conversations))
    drawn = sorted(random.Random(config.seed).sample(range(len(conversations)), size))
    dataset = encode_examples(
        [conversations[n] for n in drawn],
        tokenizer,
        config.max_length,
        skip_bad_rows=config.skip_bad_rows,
        fold_system=config.fold_system,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    aligned = load_model(config.aligned, dtype=config.dtype, merge_adapters=True).to(device)
    base = load_model(config.base, dtype=config.dtype, merge_adapters=True).to(device)
    check_head(aligned)
    check_head(base)
    tokens = discover(
        aligned,
        base,
        dataset,
        mode=config.mode,
        top_k=config.top_k,
        max_response_length=config.max_response_length,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        tokenizer=tokenizer,
    )
    settings = {name: str(getattr(config, name)) for name in OF_ITS_INPUTS}
    tokens = replace(tokens, metadata={**tokens.metadata, **settings})
    tokens.save(output)
    return tokens


def discover(
    aligned_model: nn.Module,
    base_model: nn.Module,
    dataset: Sequence[Mapping[str, Any]],
    *,
    mode: Mode = "p_diff",
    top_k: int = 50,
    max_response_length: int = 64,
    temperature: float = 1.0,
    max_tokens: int = 8192,
    tokenizer: Any = None,
    progress: bool = True,
) -> SafetyTokens:
    """Find the tokens on which the two models' confidence in the given answers differs most.

    A sample's score of a token is the mean over its answer rows at steps below
    max_response_length, of all its answers; the score is the mean over samples, from which
    `SafetyTokens.from_scores` chooses. Only the backbones run, and only answer rows enter a
    product with the vocabulary.

    Args:
        aligned_model: the chat model, in evaluation mode.
        base_model: the model it was aligned from, or the aligned model after a plain fine-tuning:
            same vocabulary, same device. One that has hardly moved is warned of.
        dataset: answers, mostly refusals, as `pact.data.dataset.encode_examples` makes them.
        mode: "p_diff" for P_aligned - P_base, "pref_logratio" for
            P_aligned (log P_base - log P_aligned).
        top_k: tokens to keep, by the aligned model's mean confidence.
        max_response_length: answer steps that count.
        temperature: divides the logits of both.
        max_tokens: positions in one forward pass, padding included; no part of the result.
        tokenizer: if given, its hash is kept, for `SafetyTokens.check_tokenizer`.
        progress: show a bar.

    Returns:
        The tokens, on the CPU; `base_confidence` is None in mode "pref_logratio".

    Raises:
        ValueError: the models cannot be compared, no sample has an answer row, the models agree on
            all kept tokens, or a setting is out of range.

    Source: arXiv 2603.07445 and the values of its released implementation.
    """
    _check_settings(mode, top_k, max_response_length, temperature)
    vocabulary = head_weight(aligned_model).shape[0]
    if top_k > vocabulary:
        raise ValueError(
            f"top_k must be at most the vocabulary's {vocabulary} tokens, got {top_k}: the paper "
            "keeps 50"
        )
    scores = mean_scores(
        aligned_model,
        base_model,
        dataset,
        mode=mode,
        max_response_length=max_response_length,
        temperature=temperature,
        max_tokens=max_tokens,
        progress=progress,
    )
    tokens = SafetyTokens.from_scores(scores.difference, scores.confidence, top_k)
    base_confidence = (scores.confidence - scores.difference)[tokens.ids].clamp(min=0).float()
    if mode == "p_diff":
        _warn_of_little(scores.confidence, base_confidence, tokens)
    metadata = {
        "aligned": model_name(aligned_model),
        "base": model_name(base_model),
        "mode": mode,
        "top_k": top_k,
        "max_response_length": max_response_length,
        "temperature": temperature,
        "num_samples": scores.num_samples,
        "num_steps": scores.num_steps,
        "vocab_size": scores.confidence.numel(),
        "pact_version": __version__,
    }
    if tokenizer is not None:
        metadata["tokenizer_hash"] = tokenizer_hash(tokenizer)
        metadata["tokenizer_size"] = len(tokenizer)
    return replace(
        tokens,
        base_confidence=base_confidence if mode == "p_diff" else None,
        metadata={name: str(value) for name, value in metadata.items()},
    )


def _check_settings(mode: str, top_k: int, max_response_length: int, temperature: float) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
    if top_k < 2:
        raise ValueError(f"top_k must be at least 2, got {top_k}: the paper keeps 50")
    if max_response_length < 1:
        raise ValueError(f"max_response_length must be at least 1, got {max_response_length}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _warn_of_little(confidence: Tensor, base_confidence: Tensor, tokens: SafetyTokens) -> None:
    """Say so where the two models are nearly one: the weights are of noise then."""
    most = (confidence[tokens.ids].float() - base_confidence).abs().max().item()
    largest = confidence.max().item()
    if most < LITTLE * largest:
        logger.warning(
            "the models hardly differ on these answers: by %.1e at most, where the largest "
            "confidence is %.1e. If the base is a plainly fine-tuned model, fine-tune it longer",
            most,
            largest,
        )


def _with_tokenizer(name: str) -> str:
    """The model itself or, of adapters that were saved without a tokenizer, their base."""
    folder = user_path(name)
    if not has_adapters(name) or (folder / "tokenizer_config.json").is_file():
        return name
    if (folder / OWN_BASE / "config.json").is_file():
        return str(folder / OWN_BASE)
    check_json(folder, (ADAPTERS_FILE,))
    with loading(f"{ADAPTERS_FILE} of {folder}"):
        from peft import PeftConfig

        return PeftConfig.from_pretrained(str(folder)).base_model_name_or_path or name


def _check_tokenizers(aligned: Any, base: Any, config: DiscoverConfig) -> None:
    if tokenizer_hash(aligned) != tokenizer_hash(base):
        raise ValueError(
            f"the aligned and the base model must share one tokenizer, got other vocabularies in "
            f"{config.aligned} ({len(aligned)} tokens) and {config.base} ({len(base)}): give the "
            "model that the aligned one was made from"
        )
