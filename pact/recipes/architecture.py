"""The sizes of a model, as its transformers config names them, and what follows from them.

Legend: D hidden size, V vocabulary, H heads, h their width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a decoder's config says of its sizes; enough to make it, and to count its memory."""

    model_type: str
    """The family, a `model_type` of transformers: llama, qwen2, gemma2."""
    hidden_size: int
    """D."""
    num_hidden_layers: int
    """Decoder layers."""
    num_attention_heads: int
    """H, heads of the queries."""
    num_key_value_heads: int
    """Heads of the keys and of the values, a divisor of H."""
    head_dim: int
    """h; H h is D in most families."""
    intermediate_size: int
    """Width inside the gated MLP."""
    vocab_size: int
    """V, rows of the embedding and of the head."""
    tie_word_embeddings: bool
    """Whether head and embedding are one matrix."""
    max_position_embeddings: int
    """Longest context."""
    final_logit_softcapping: float | None = None
    """Soft cap c of the logits, c tanh(x / c)."""
    attn_logit_softcapping: float | None = None
    """Soft cap of the attention scores, which only the eager attention applies."""
    query_pre_attn_scalar: int | None = None
    """Queries are divided by its root; unset is h."""
    sliding_window: int | None = None
    """Positions that every other layer looks back."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads={self.num_attention_heads}, "
                f"got {self.num_key_value_heads}"
            )

    def config(self, **changes: Any) -> Any:
        """The transformers config of these sizes, with some of them changed."""
        from transformers import AutoConfig

        sizes = {name: value for name, value in asdict(self).items() if value is not None} | changes
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a layer's matrices by name."""
        d, width = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (d, queries),
            "k_proj": (d, keys),
            "v_proj": (d, keys),
            "o_proj": (queries, d),
            "gate_proj": (d, width),
            "up_proj": (d, width),
            "down_proj": (width, d),
        }

    @property
    def norms_per_layer(self) -> int:
        """Gemma 2 norms both what enters and what leaves attention and MLP."""
        return 4 if self.model_type == "gemma2" else 2

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model, the tied head once."""
        shapes = self.linear_shapes
        layer = sum(rows * columns for rows, columns in shapes.values())
        layer += self.norms_per_layer * self.hidden_size
        if self.model_type == "qwen2":  # its queries, keys and values have biases
            layer += sum(shapes[name][1] for name in ("q_proj", "k_proj", "v_proj"))
        matrices = 1 if self.tie_word_embeddings else 2
        embeddings = matrices * self.vocab_size * self.hidden_size
        return embeddings + self.num_hidden_layers * layer + self.hidden_size
