"""A family in small: a random model with its flags, a tokenizer in its style, and a guard.

They are made in milliseconds and know nothing; what runs on them runs on the family.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pact.recipes.architecture import Architecture

HIDDEN_SIZE = 64
LAYERS = 2
HEADS = 4
KEY_VALUE_HEADS = 2
SAFE = " safe"
TEXTS = ["I cannot help with that, and it is not safe.", "Sure, here is how to bake bread."]
VOCAB_SIZE = 320  # 256 bytes, the special tokens, and merges learnt from TEXTS


class Style(NamedTuple):
    """How a family writes a chat."""

    template: str
    special_tokens: tuple[str, ...]
    bos: str
    eos: str
    pad: str


CHATML = Style(
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
)
STYLES = {
    "llama": Style(
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|eot_id|>",
    ),
    "qwen2": CHATML,
    "gemma2": Style(
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role'])"
        " + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
    ),
}
GUARD_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{{ 'Is that safe?' }}"
)


def tiny_tokenizer(model_type: str, template: str | None = None) -> Any:
    """A byte-level BPE with the special tokens and the chat template of a family.

    Args:
        model_type: one without a style here gets ChatML.
        template: another chat template than the family's.
    """
    style = STYLES.get(model_type, CHATML)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True) for token in style.special_tokens],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=style.bos,
        eos_token=style.eos,
        pad_token=style.pad,
        chat_template=template or style.template,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(architecture: Architecture, tokenizer: Any, seed: int) -> Any:
    """A random model of the family, with its flags: ties, soft caps, windows, grouped heads.

    Heads are as wide against the hidden size as the family's. Weights are drawn wide enough (0.2)
    for the distributions to be far from uniform.
    """
    ratio = architecture.num_attention_heads * architecture.head_dim / architecture.hidden_size
    head_dim = 2 * round(HIDDEN_SIZE / HEADS / 2 * ratio)  # even, as rotary positions need it
    changes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": head_dim,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture.query_pre_attn_scalar is not None:
        changes["query_pre_attn_scalar"] = head_dim
    if architecture.sliding_window is not None:
        changes["sliding_window"] = 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(architecture.config(**changes)).eval()


def save_tiny(architecture: Architecture, folder: Path, seed: int) -> str:
    """Save a tiny model of a family with its tokenizer; returns the folder."""
    tokenizer = tiny_tokenizer(architecture.model_type)
    tiny_model(architecture, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def save_guard(architecture: Architecture, folder: Path) -> str:
    """Save a guard that calls everything safe; returns the folder.

    All tokens have one embedding, no layer adds to it, and the head knows one word for it.
    """
    tokenizer = tiny_tokenizer(architecture.model_type, GUARD_TEMPLATE)
    (word,) = tokenizer(SAFE, add_special_tokens=False)["input_ids"]
    guard = tiny_model(replace(architecture, tie_word_embeddings=False), tokenizer, seed=0)
    for name, weight in guard.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    guard.get_input_embeddings().weight.fill_(1.0)
    head = guard.get_output_embeddings().weight  # (V, D)
    head.zero_()
    head[word] = 1.0
    guard.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
