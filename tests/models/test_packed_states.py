"""States of packed sequences are those of the sequences apart, or the model is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import modeling_flash_attention_utils as flash

from pact.models import check_packing, hidden_states
from tests.rounding import STATES, SUMS
from tests.tiny import tiny_llama

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,  # wide, for attention to matter
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma2": {"sliding_window": 3},  # shorter than the sequences
    "Mistral": {"sliding_window": 3},
    "Phi": {},  # heads with a bias, layers in parallel
    "Cohere2": {"sliding_window": 3},  # layers without positions
    "GPTNeoX": {},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "FalconH1": (
        {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8},
        "differ by .* in FalconH1ForCausalLM, whose layers look across sequences: .* packing off",
    ),
    "Bloom": ({}, "takes position_ids, got BloomForCausalLM: train it with packing off"),
}
LENGTHS = [6, 4, 1, 5]
LINES = [[0, 1], [2, 3]]  # 10 tokens; 1 and 5 and padding


def tiny(family: str, attention: str, options: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def packed_problem() -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor], Tensor]:
    """Sequences; ids, mask and positions of their lines; and which tokens are whose, in order."""
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(1, 40, (length,), generator=generator) for length in LENGTHS]
    ids, positions = torch.full((2, 10), 7), torch.zeros(2, 10, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    owner = torch.full((2, 10), -1)
    for line, members in enumerate(LINES):
        end = 0
        for member in members:
            place = slice(end, end + LENGTHS[member])
            ids[line, place] = sequences[member]
            positions[line, place] = torch.arange(LENGTHS[member])
            mask[line, place] = 1
            owner[line, place] = member
            end += LENGTHS[member]
        positions[line, end:] = torch.arange(10 - end)
    return sequences, (ids, mask, positions), owner


def check_states(model: nn.Module) -> None:
    sequences, lines, owner = packed_problem()
    states = hidden_states(model, *lines)
    assert states.shape[:2] == (2, 10) and states.isfinite().all()
    for member, sequence in enumerate(sequences):
        alone = hidden_states(model, sequence[None], torch.ones_like(sequence[None]))[0]
        torch.testing.assert_close(states[owner == member], alone, rtol=STATES, atol=SUMS)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_states_are_those_apart(family: str, attention: str) -> None:
    if (family, attention) == ("Gemma2", "sdpa"):
        pytest.skip("its soft cap is not in sdpa")
    model = tiny(family, attention, FAMILIES[family])
    assert model.get_decoder().config._attn_implementation == attention
    check_states(model)
    check_packing(model)


def test_flash_attention_gets_its_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an oracle in its place; it reads positions from one line alone, and padding is left out.

    Without `hidden_states` making one line of two, sequences would see each other: shown last.
    """
    seen = []

    def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool = True, **_: Any) -> Tensor:
        heads = (x.transpose(1, 2) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    def attend_varlen(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **_: Any
    ) -> Tensor:
        seen.append(cu_seqlens_q.tolist())
        bounds = seen[-1]
        parts = [
            attend(*(x[None, start:end] for x in (q, k, v)))[0]
            for start, end in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        return torch.cat(parts)

    for name, value in {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": attend,
        "_flash_varlen_fn": attend_varlen,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": lambda **_: {},
        "_process_with_kvcache_kwargs_fn": lambda **_: {},
    }.items():
        monkeypatch.setattr(flash, name, value)
    model = tiny_llama()
    sequences, lines, _ = packed_problem()
    model.config._attn_implementation = "flash_attention_2"
    hidden_states(model, *lines)
    assert seen == [[0, 6, 10, 11, 16]] * 2  # both layers, no padding
    check_states(model)
    check_packing(model)

    ids, _, positions = lines
    across = model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False)
    alone = hidden_states(model, sequences[1][None], torch.ones_like(sequences[1][None]))[0]
    assert (across.last_hidden_state[0, 6:10] - alone).abs().max() > 0.1


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_looks_across_sequences_is_refused(family: str) -> None:
    options, message = REFUSED[family]
    with pytest.raises(ValueError, match=message):
        check_packing(tiny(family, "eager", options))


def test_the_check_leaves_modes_alone_and_dropout_out() -> None:
    """A student in training, with one part in evaluation mode."""
    model = tiny("GPTNeoX", "eager", {"hidden_dropout": 0.5}).train()
    model.get_decoder().layers[0].eval()
    before = [module.training for module in model.modules()]
    check_packing(model)
    assert [module.training for module in model.modules()] == before


def test_the_check_allows_for_bfloat16() -> None:
    check_packing(tiny_llama().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        check_packing(tiny_llama())
