"""The safety tokens and their weights: made from scores, kept in one small file.

Legend: V vocabulary, K safety tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pact.common.outputs import whole_file
from pact.common.printable import printable
from pact.common.settings import user_path

FORMAT = "pact_safety_tokens_1"
DIGEST = "digest"
"""In the metadata, beside the format: of the tensors and the rest. Files before it have none."""
NEEDED = ("ids", "weights")
CONFIDENCES = ("aligned_confidence", "base_confidence")
NEGLIGIBLE = 1e-9  # scores up to this magnitude are neither centred nor scaled
EPSILON = 1e-6
LARGEST_CONFIDENCE = 1.001
"""A probability of 1 after rounding."""


@dataclass(frozen=True, eq=False)
class SafetyTokens:
    """K tokens, how much each counts, and where they come from."""

    ids: Tensor
    """(K,) int64, ascending."""
    weights: Tensor
    """(K,) fp32: the safety direction's entries, negative ones included."""
    aligned_confidence: Tensor | None = None
    """(K,) fp32: the aligned model's mean probability of each token in its answers."""
    base_confidence: Tensor | None = None
    """(K,) fp32: the base model's."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Models, tokenizer, settings: whatever `discover` wrote down."""

    def __post_init__(self) -> None:
        if self.ids.dim() != 1 or self.ids.dtype != torch.int64 or self.ids.numel() == 0:
            raise ValueError(
                f"safety tokens need at least one id, (K,) int64, got {tuple(self.ids.shape)} "
                f"{self.ids.dtype}: run `pact discover` with top_k of 2 or more"
            )
        if self.ids[0] < 0 or not bool((self.ids.diff() > 0).all()):
            raise ValueError("token ids must be ascending, distinct and at least 0: sort them")
        for name in ("weights", *CONFIDENCES):
            values = getattr(self, name)
            if values is not None and values.shape != self.ids.shape:
                raise ValueError(
                    f"{name} must have one entry for each of the {self.ids.numel()} ids, got "
                    f"{tuple(values.shape)}"
                )
        if self.weights.dtype != torch.float32 or not bool(self.weights.isfinite().all()):
            raise ValueError(f"weights must be finite and fp32, got {self.weights.dtype} values")
        for name in CONFIDENCES:
            values = getattr(self, name)
            if values is None:
                continue
            if values.dtype != torch.float32:
                raise ValueError(f"{name} must be fp32, got {values.dtype}")
            outside = values[~((0 <= values) & (values <= LARGEST_CONFIDENCE))]
            if outside.numel():
                raise ValueError(f"{name} must be probabilities, got {outside[0].item():.3g}")

    @classmethod
    def from_scores(cls, difference: Tensor, confidence: Tensor, top_k: int = 50) -> SafetyTokens:
        """Turn mean scores into the sparse, normalised safety direction.

            v = difference on the top_k ids by confidence, 0 elsewhere
            v <- (v - mean) / (std + 1e-6)   on entries beyond 1e-9 in magnitude, std with n - 1
            v <- v / (norm(v) + 1e-6)

        The ids with a non-zero entry are the safety tokens. Of equal confidences the lower id wins.

        Args:
            difference: (V,) mean over samples of how much more the aligned model says each token.
            confidence: (V,) mean over samples of the aligned model's probabilities.
            top_k: ids to keep, 2 .. V.

        Raises:
            ValueError: fewer than two kept entries exceed 1e-9 (one has no standard deviation),
                or they are all equal, so that nothing is left when they are centred.

        Source: arXiv 2603.07445 and the values of its released implementation.
        """
        _check_scores(difference, confidence, top_k)
        ids = confidence.argsort(descending=True, stable=True)[:top_k].sort().values  # (K,)
        entries = difference[ids].double()  # (K,)
        differs = entries.abs() > NEGLIGIBLE
        if int(differs.sum()) < 2:
            raise ValueError(
                f"at least two of the top_k={top_k} tokens must tell the models apart, got "
                f"{int(differs.sum())}: raise top_k, or give another base model if it is the "
                "aligned one, or one that was hardly fine-tuned"
            )
        centred = entries[differs] - entries[differs].mean()
        entries[differs] = centred / (centred.std(correction=1) + EPSILON)
        weights = (entries / (entries.norm() + EPSILON)).float()
        kept = weights != 0
        ids = ids[kept].cpu()
        return cls(ids, weights[kept].cpu(), confidence[ids].float().cpu())

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; readers see the old file or the new one, never a part."""
        path = user_path(path)
        values = {name: getattr(self, name) for name in (*NEEDED, *CONFIDENCES)}
        tensors = {name: value.contiguous() for name, value in values.items() if value is not None}
        own = {"format": FORMAT, DIGEST: self._digest()}
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={**self.metadata, **own})

    @classmethod
    def load(cls, path: str | Path) -> SafetyTokens:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing, damaged, of another version, or not one of safety
                tokens.
        """
        path = user_path(path)
        if not path.is_file():
            raise ValueError(f"safety-token file {path} does not exist: run `pact discover` first")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(_not_tokens(path, str(error))) from error
        found = metadata.pop("format", None)
        if found != FORMAT:
            reason = f"its metadata lack format={FORMAT}"
            if found is not None and found.startswith(FORMAT.rstrip("1")):
                reason = f"of format {found[:40]!r}, where this version of pact reads {FORMAT}"
            raise ValueError(_not_tokens(path, reason))
        names = set(tensors)
        if not set(NEEDED) <= names <= {*NEEDED, *CONFIDENCES}:
            reason = f"it must hold {NEEDED}, and may hold {CONFIDENCES}, got {sorted(names)}"
            raise ValueError(_not_tokens(path, reason))
        digest = metadata.pop(DIGEST, None)
        try:
            tokens = cls(**tensors, metadata=metadata)
        except ValueError as error:
            raise ValueError(_not_tokens(path, str(error))) from error
        if digest is not None and digest != tokens._digest():
            raise ValueError(_not_tokens(path, "it is not as it was written: its digest differs"))
        return tokens

    def _digest(self) -> str:
        """sha256 of the tensors with their names, and of the metadata."""
        digest = hashlib.sha256(json.dumps(dict(self.metadata), sort_keys=True).encode())
        for name in (*NEEDED, *CONFIDENCES):
            values = getattr(self, name)
            if values is not None:
                digest.update(f"{name} ".encode())
                digest.update(values.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a tokenizer to which these ids mean other tokens.

        Raises:
            ValueError: its vocabulary is not the one that the tokens were found with; both models
                are named.
        """
        found = printable(self.metadata.get("aligned", "an unnamed model"))
        given = tokenizer.name_or_path or type(tokenizer).__name__
        stored = self.metadata.get("tokenizer_hash"), self.metadata.get("tokenizer_size")
        if stored[1] is not None and stored[1] != str(len(tokenizer)):
            cause = f"{printable(stored[1])} tokens against {len(tokenizer)}"
        elif stored[0] is not None and stored[0] != tokenizer_hash(tokenizer):
            cause = "the same size, other entries"
        elif int(self.ids[-1]) >= len(tokenizer):
            cause = f"token id {int(self.ids[-1])} against {len(tokenizer)} tokens"
        else:
            return
        raise ValueError(
            f"the tokens were found with the tokenizer of {found}, got the tokenizer of {given}, "
            f"whose vocabulary differs ({cause}): run `pact discover` for this model"
        )


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of what a token id means: vocabulary, merges, and added tokens with the special ones.

    Which of the special tokens pads, begins or ends is left out: a base model and its chat model
    differ in that and still share every id.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer must be a fast one to be compared, got {type(tokenizer).__name__}: "
            "load it with AutoTokenizer"
        )
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [
        pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])
    ]
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    parts = {"vocabulary": tokenizer.get_vocab(), "merges": merges, "added": added}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_scores(difference: Tensor, confidence: Tensor, top_k: int) -> None:
    if difference.dim() != 1 or difference.shape != confidence.shape:
        raise ValueError(
            "difference and confidence must both be (V,), got "
            f"{tuple(difference.shape)} and {tuple(confidence.shape)}"
        )
    if not 2 <= top_k <= difference.numel():
        raise ValueError(
            f"top_k must be between 2 and the vocabulary's {difference.numel()} tokens, got "
            f"{top_k}: the paper keeps 50"
        )
    if not bool(difference.isfinite().all() and confidence.isfinite().all()):
        raise ValueError(
            "scores must be finite, got NaN or infinity: run the models in bf16 or fp32"
        )


def _not_tokens(path: Path, reason: str) -> str:
    return f"{path} is not a file of safety tokens ({reason}): give one that `pact discover` wrote"
