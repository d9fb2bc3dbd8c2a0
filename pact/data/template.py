"""Conversations as the model reads them: token ids by its chat template, labels on its turns."""

from __future__ import annotations

import re
from os.path import commonprefix
from typing import Any, NamedTuple

from jinja2 import TemplateError

from pact.data.examples import Conversation
from pact.data.spans import IGNORE

_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Encoded(NamedTuple):
    """One conversation of L tokens."""

    input_ids: list[int]
    """(L,) token ids."""
    labels: list[int]
    """(L,) the token id on the assistant's tokens, -100 elsewhere."""


class _Tokens(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]  # each token's characters in the text


def encode(conversation: Conversation, tokenizer: Any, *, max_length: int | None = None) -> Encoded:
    """Render a conversation with the model's chat template and label what the assistant says.

    Labelled are the tokens that hold a character of an assistant turn's content, and its
    end-of-turn token; not the header before it, nor the whitespace that the template puts after the
    end of the turn. A template with `{% generation %}` blocks says itself what is labelled; for any
    other, the answer is what the template adds to the turns before it and their generation prompt.

    Args:
        conversation: messages with role and content; without an assistant turn nothing is labelled.
        tokenizer: a fast tokenizer with a chat template.
        max_length: tokens beyond it are cut off at the right, also inside an answer.

    Raises:
        ValueError: the tokenizer has no chat template or is not a fast one; the template refuses
            the conversation, or renders its beginning differently once later turns follow.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    if _GENERATION_BLOCK.search(_chat_template(tokenizer)):
        encoded = _encode_by_blocks(conversation, tokenizer)
    else:
        encoded = _encode_by_prefixes(conversation, tokenizer)
    return Encoded(encoded.input_ids[:max_length], encoded.labels[:max_length])


def header_ids(tokenizer: Any) -> list[int]:
    """The assistant header: the tokens that the generation prompt adds to a user's turn.

    Raises:
        ValueError: the template has no generation prompt, so there is no header.
    """
    turn = [{"role": "user", "content": "Hello"}]
    before = _render(turn, tokenizer)
    text = _render(turn, tokenizer, add_generation_prompt=True)
    if not text.startswith(before) or text == before:
        raise ValueError(
            "the chat template must add the assistant header for add_generation_prompt=True, got "
            f"{text!r} for the turn {before!r}: use gate=False, which needs no header, or a "
            "template with a generation prompt"
        )
    tokens = _tokenize(text, tokenizer)
    return [tokens.ids[n] for n in _overlapping(tokens, len(before), len(text))]


def prompt_text(prompt: str | Conversation, tokenizer: Any) -> str:
    """The text to generate from: the rendered turns and the assistant header.

    Args:
        prompt: the user's words, or a conversation, whose last turn is left out if it is the
            assistant's.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return _render(turns, tokenizer, add_generation_prompt=True)


def _encode_by_blocks(conversation: Conversation, tokenizer: Any) -> Encoded:
    _check_fast(tokenizer)
    try:
        rendered = tokenizer.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except TemplateError as error:
        raise _refused(error) from error
    ids = list(rendered["input_ids"])
    mask = rendered["assistant_masks"]
    return Encoded(ids, [i if answer else IGNORE for i, answer in zip(ids, mask, strict=True)])


def _encode_by_prefixes(conversation: Conversation, tokenizer: Any) -> Encoded:
    text = _render(conversation, tokenizer)
    tokens = _tokenize(text, tokenizer)
    labels = [IGNORE] * len(tokens.ids)
    control = tokenizer.added_tokens_decoder
    for turn, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        start = _prefix_length(text, conversation[:turn], tokenizer, add_generation_prompt=True)
        end = _prefix_length(text, conversation[: turn + 1], tokenizer)
        for n in _answer_tokens(tokens, text, start, end, control):
            labels[n] = tokens.ids[n]
    return Encoded(tokens.ids, labels)


def _prefix_length(
    text: str, turns: Conversation, tokenizer: Any, add_generation_prompt: bool = False
) -> int:
    """Characters of `text` that `turns` render to."""
    prefix = _render(turns, tokenizer, add_generation_prompt=add_generation_prompt)
    if not text.startswith(prefix):
        same = len(commonprefix([prefix, text]))
        raise ValueError(
            "the chat template must render the beginning of a conversation the same whether or "
            f"not turns follow, but the first {len(turns)} turns on their own have "
            f"{prefix[same : same + 40]!r} where the whole has {text[same : same + 40]!r}: the "
            "template rewrites history (it may drop earlier thinking); use conversations with one "
            "assistant turn, or mark the answers in the template with {% generation %}"
        )
    return len(prefix)


def _answer_tokens(tokens: _Tokens, text: str, start: int, end: int, control_ids: Any) -> list[int]:
    """Tokens of one assistant turn, without whitespace after the control token that ends it."""
    answer = _overlapping(tokens, start, end)
    kept = len(answer)
    while kept and text[slice(*tokens.offsets[answer[kept - 1]])].isspace():
        kept -= 1
    ends_with_control = kept > 0 and tokens.ids[answer[kept - 1]] in control_ids
    return answer[:kept] if ends_with_control else answer


def _overlapping(tokens: _Tokens, start: int, end: int) -> list[int]:
    """Indices of the tokens that hold a character of text[start:end]."""
    return [n for n, (a, b) in enumerate(tokens.offsets) if max(a, start) < min(b, end)]


def _tokenize(text: str, tokenizer: Any) -> _Tokens:
    _check_fast(tokenizer)
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return _Tokens(out["input_ids"], out["offset_mapping"])


def _render(turns: Conversation, tokenizer: Any, add_generation_prompt: bool = False) -> str:
    _chat_template(tokenizer)
    if not turns:
        raise ValueError(
            "a conversation must have a turn before the assistant's, got none: put the user's first"
        )
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise _refused(error) from error


def _refused(error: TemplateError) -> ValueError:
    return ValueError(
        f"the chat template refuses the conversation ({error}): bring its roles into the order "
        "that the template asks for"
    )


def _chat_template(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} must have a chat template, got none: use "
            "the chat model's tokenizer, or set tokenizer.chat_template"
        )
    return tokenizer.get_chat_template()


def _check_fast(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer must be a fast one, which knows each token's place in the text, got "
            f"{type(tokenizer).__name__}: load it with AutoTokenizer"
        )
