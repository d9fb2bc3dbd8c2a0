"""The chat template at work: conversations to text, and text to tokens that know their place."""

from __future__ import annotations

import copy
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from jinja2 import TemplateError

from pact.data.conversation import Conversation, Message

OF_TEMPLATES = (
    TemplateError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    UnicodeEncodeError,
)
"""What a template's own code raises."""
_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_NOT_VARIABLES = {
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
}
"""What a template is given by other ways than `chat_template_kwargs`."""


class BadConversation(ValueError):
    """A conversation that the template, or what is to be learnt of it, has no room for."""


class Tokens(NamedTuple):
    """A text of L tokens."""

    ids: list[int]
    """(L,) token ids."""
    offsets: list[tuple[int, int]]
    """(L,) each token's first character and the one after its last."""

    def overlapping(self, start: int, end: int) -> list[int]:
        """Indices of the tokens that hold a character of text[start:end]."""
        first = bisect_right(self.offsets, start, key=itemgetter(1))
        last = bisect_left(self.offsets, end, key=itemgetter(0))
        return [n for n in range(first, last) if self.offsets[n][0] < self.offsets[n][1]]

    def first_word(self, start: int, text: str) -> int | None:
        """The first token with a character of text[start:] that is not whitespace alone."""
        for n in range(bisect_right(self.offsets, start, key=itemgetter(1)), len(self.offsets)):
            first, end = self.offsets[n]
            if first < end and not text[first:end].isspace():
                return n
        return None

    def reaches_across(self, place: int) -> bool:
        """Whether a token holds the characters on both sides of a place."""
        n = bisect_right(self.offsets, place, key=itemgetter(1))
        return n < len(self.offsets) and self.offsets[n][0] < place


def render(turns: Sequence[Message], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    """The text of a conversation, with its tools and template variables if it has any.

    Raises:
        BadConversation: the template refuses it, or it has no turn.
        ValueError: the tokenizer has no chat template.
    """
    chat_template(tokenizer)
    if not turns:
        raise BadConversation(
            "a conversation must have a turn before the assistant's, got none: put the user's first"
        )
    try:
        text = tokenizer.apply_chat_template(
            plain(turns),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **_variables(turns),
        )
        text.encode()  # half of a surrogate pair is no text
        return text
    except OF_TEMPLATES as error:
        raise _refused(error) from error


def marked_characters(turns: Conversation, tokenizer: Any) -> list[tuple[int, int]]:
    """The runs of text that the template's `{% generation %}` blocks say to learn."""
    try:
        out = tokenizer.apply_chat_template(
            plain(turns),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
            **_variables(turns),
        )
    except OF_TEMPLATES as error:
        raise _refused(error) from error
    marked = zip(out["assistant_masks"], out["offset_mapping"], strict=True)
    return [(start, end) for mark, (start, end) in marked if mark and start < end]


def has_generation_blocks(tokenizer: Any) -> bool:
    """Whether the template marks itself what is to be learnt."""
    return bool(_GENERATION_BLOCK.search(chat_template(tokenizer)))


def tokenize(text: str, tokenizer: Any, cuts: Sequence[int] = ()) -> Tokens:
    """Tokens of a rendered text, none of which reaches across a cut.

    Generation begins behind a prompt that was tokenized by itself. Where the tokenizer would merge
    the prompt's last characters with the answer's first, the two are tokenized apart, so that what
    is learnt begins as generation does.

    Args:
        text: a rendered conversation, which holds its special tokens.
        tokenizer: a fast tokenizer.
        cuts: places in the text, in any order.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """
    check_fast(tokenizer)
    whole = _tokenize_piece(text, tokenizer, 0)
    inner = {place for place in cuts if whole.reaches_across(place)}
    if not inner:
        return whole
    edges = [0, *sorted(inner), len(text)]
    ids, offsets = [], []
    for start, end in zip(edges, edges[1:], strict=False):
        piece = _tokenize_piece(text[start:end], tokenizer, start)
        ids += piece.ids
        offsets += piece.offsets
    return Tokens(ids, offsets)


def control_ids(tokenizer: Any) -> set[int]:
    """Tokens that are no plain text: added ones, special or not."""
    return {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}


def with_template_defaults(tokenizer: Any, kwargs: Mapping[str, Any] | None) -> Any:
    """A copy of a tokenizer whose chat template takes these variables where it is given no others.

    The copy keeps them when it is saved, so that a model trained with `enable_thinking=False`, say,
    is prompted the same way by whoever loads it; a caller's own value still wins.

    Args:
        tokenizer: a tokenizer with a chat template.
        kwargs: variables by name, JSON values each; without any the tokenizer is returned as it is.

    Raises:
        ValueError: the template does not read such a variable, or its value is no JSON value.
    """
    if not kwargs:
        return tokenizer
    template = chat_template(tokenizer)
    templates = tokenizer.chat_template
    check_variables(kwargs, str(templates) if isinstance(templates, dict) else template)
    prefix = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(name, value)} %}}"
        "{%- endif %}\n"  # whose newline the template engine takes away
        for name, value in kwargs.items()
    )
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        {name: prefix + text for name, text in templates.items()}
        if isinstance(templates, dict)
        else prefix + template
    )
    return changed


def check_variables(kwargs: Mapping[str, Any], template: str) -> None:
    """Refuse variables that the template has no use for."""
    for name in kwargs:
        if name in _NOT_VARIABLES or not name.isidentifier():
            raise ValueError(
                f"chat_template_kwargs must name variables of the chat template, got {name!r}: "
                "leave it out"
            )
        if not re.search(rf"\b{name}\b", template):
            raise ValueError(
                f"chat_template_kwargs must be variables that the chat template reads, got {name!r}"
                ", which it does not: it would have no effect"
            )


def chat_template(tokenizer: Any, tools: Sequence[Any] | None = None) -> str:
    """The text of the tokenizer's template.

    Raises:
        ValueError: it has none.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} must have a chat template, got none: use "
            "the chat model's tokenizer, or set tokenizer.chat_template"
        )
    return tokenizer.get_chat_template(tools=tools)


def check_fast(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not know where its tokens stand."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer must be a fast one, which knows each token's place in the text, got "
            f"{type(tokenizer).__name__}: load it with AutoTokenizer"
        )


def plain(turns: Sequence[Message]) -> list[Message]:
    """Messages without what is ours, as templates take them."""
    return [{name: m[name] for name in m if name != "train"} for m in turns]


def _variables(turns: Sequence[Message]) -> dict[str, Any]:
    return {"tools": getattr(turns, "tools", None), **getattr(turns, "template_kwargs", {})}


def _tokenize_piece(text: str, tokenizer: Any, start: int) -> Tokens:
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return Tokens(out["input_ids"], [(a + start, b + start) for a, b in out["offset_mapping"]])


def _literal(name: str, value: Any) -> str:
    """A JSON value as Jinja spells it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (int, float)) and abs(value) < float("inf"):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(name, entry) for entry in value)}]"
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        entries = (f"{_literal(name, key)}: {_literal(name, v)}" for key, v in value.items())
        return f"{{{', '.join(entries)}}}"
    raise ValueError(
        f"chat_template_kwargs must be JSON values, got {value!r:.80} for {name!r}: give a string, "
        "number, true, false, null, list or object"
    )


def _refused(error: Exception) -> BadConversation:
    return BadConversation(
        f"the chat template refuses the conversation ({error}): bring its roles into the order "
        "that the template asks for"
    )
