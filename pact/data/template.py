"""Conversations as the model reads them: token ids by its chat template, labels on its turns."""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from operator import itemgetter
from typing import Any, NamedTuple

from pact.data.conversation import Conversation, Message, is_trained, like
from pact.data.folding import folded, renders_system
from pact.data.rendering import (
    BadConversation,
    Tokens,
    chat_template,
    check_fast,
    check_variables,
    control_ids,
    has_generation_blocks,
    marked_characters,
    render,
    tokenize,
    with_template_defaults,
)
from pact.data.spans import IGNORE
from pact.data.turns import Turn, find_turns

__all__ = [
    "BadConversation",
    "Encoded",
    "Encoder",
    "encode",
    "end_of_turn_ids",
    "header_ids",
    "prompt_text",
    "with_template_defaults",
]

logger = logging.getLogger(__name__)

MOST_RENDERED = 2_000_000
"""Answers to learn times messages of a conversation: some ten seconds of rendering."""

_ASKED: list[Message] = [{"role": "user", "content": "Hello"}]
_ANSWERED: list[Message] = [*_ASKED, {"role": "assistant", "content": "Word"}]
_NEXT: Message = {"role": "user", "content": "Next"}


class Encoded(NamedTuple):
    """One conversation of L tokens."""

    input_ids: list[int]
    """(L,) token ids."""
    labels: list[int]
    """(L,) the token id on the assistant's tokens, -100 elsewhere."""


def encode(
    conversation: Sequence[Message],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Encoded:
    """Render a conversation with the model's chat template and label what the assistant says.

    Labelled are the tokens of every assistant turn that is to be learnt, from its first word to the
    token that ends it. Not labelled are the header before it and what the template always puts
    before an answer's words, an empty thinking block or a channel for one; nor the whitespace
    behind the end of the turn. Thoughts and tool calls are words too. A template with
    `{% generation %}` blocks says itself which of these tokens are labelled, but for the token that
    ends a turn, without which the model would not learn to stop.

    Args:
        conversation: messages with role and content, and what else `pact.data.conversation` names;
            without an assistant turn nothing is labelled.
        tokenizer: a fast tokenizer with a chat template.
        max_length: tokens beyond it are cut off at the right, also inside an answer.
        chat_template_kwargs: variables of the template, see `with_template_defaults`.

    Raises:
        BadConversation: a ValueError; the template refuses the conversation, or does not render
            what it says.
        ValueError: the tokenizer has no chat template or is not a fast one.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    encoded = Encoder(with_template_defaults(tokenizer, chat_template_kwargs))(conversation)
    return Encoded(encoded.input_ids[:max_length], encoded.labels[:max_length])


class Encoder:
    """`encode` for many conversations: what the template alone decides is found once."""

    def __init__(self, tokenizer: Any, *, fold_system: bool = False) -> None:
        self.tokenizer = tokenizer
        self.folds = fold_system and not renders_system(tokenizer)
        self.marks_answers = has_generation_blocks(tokenizer)
        check_fast(tokenizer)
        self.control = control_ids(tokenizer)
        self._said: set[str] = set()

    @cached_property
    def closings(self) -> list[list[int]]:
        """The tokens that end a turn, at the end of a conversation and before another turn."""
        return _closings(self.tokenizer)

    def __call__(self, conversation: Sequence[Message]) -> Encoded:
        """Encode one conversation, whole."""
        turns = like(conversation, conversation)
        turns = folded(turns) if self.folds else turns
        self._check(turns)
        text = render(turns, self.tokenizer)
        _check_rendered(text, turns)
        found = find_turns(text, turns, self.tokenizer)
        tokens = tokenize(text, self.tokenizer, [turn.start for turn in found])
        ids, labels = list(tokens.ids), [IGNORE] * len(tokens.ids)
        marked = marked_characters(turns, self.tokenizer) if self.marks_answers else None
        for turn in found:
            end, is_closed = self._end(text, tokens, turn, turns)
            answer = tokens.overlapping(turn.start, end)
            if marked is not None:
                answer = self._kept(answer, tokens, marked)
            for n in answer:
                labels[n] = ids[n]
            if (answer or marked is None) and not is_closed and turn.message == len(turns) - 1:
                closing = self._added_closing("tool_calls" in turns[turn.message])
                ids += closing
                labels += closing
        return Encoded(ids, labels)

    def _check(self, turns: Conversation) -> None:
        learnt = sum(is_trained(message) for message in turns)
        if learnt * len(turns) > MOST_RENDERED:
            raise BadConversation(
                "each answer is rendered with all that stands before it, so a conversation must "
                f"have at most {MOST_RENDERED} answers times messages, got {learnt} times "
                f"{len(turns)}: split it, or mark answers by train: false"
            )
        template = chat_template(self.tokenizer, turns.tools)
        try:
            check_variables(turns.template_kwargs, template)
        except ValueError as error:
            raise BadConversation(str(error)) from error
        if turns.tools and "tools" not in template:
            raise BadConversation(
                f"the chat template must read the conversation's tools, and does not, got "
                f"{len(turns.tools)}: take them out of the data, or use a template that does"
            )

    def _end(self, text: str, tokens: Tokens, turn: Turn, turns: Conversation) -> tuple[int, bool]:
        """Behind the token that ends a turn, and true; or behind what the turn adds, and false."""
        behind = tokens.first_word(turn.end, text)
        closed = self._closed([] if behind is None else [behind], tokens)
        if closed is None:
            end = self._end_of_addition(text, turn, turns)
            closing = tokens.overlapping(turn.end, end)
            closed = self._closed(closing, tokens)
        if closed is not None:
            return tokens.offsets[closed][1], True
        while closing and text[slice(*tokens.offsets[closing[-1]])].isspace():
            closing.pop()
        if closing and tokens.ids[closing[-1]] in self.control:
            return tokens.offsets[closing[-1]][1], True
        return end, False

    def _added_closing(self, calls: bool) -> list[int]:
        """What ends the last turn where the template puts nothing behind it; but for calls, whose
        end another token may be."""
        if self.closings and not calls:
            self._say(
                "the chat template does not close the last answer: the token that closes those "
                "before it is put there, and learnt, since the model would not learn to stop"
            )
            return self.closings[0]
        self._say(
            "the chat template puts no token of its own behind an answer: what it puts there is "
            "learnt as plain text, and nothing else ends an answer"
        )
        return []

    def _closed(self, places: Sequence[int], tokens: Tokens) -> int | None:
        """The last token of the first closing that begins at one of the places."""
        if not any(tokens.ids[n] in self.control for n in places):
            return None
        for n in places:
            for closing in self.closings:
                if tokens.ids[n : n + len(closing)] == closing:
                    return n + len(closing) - 1
        return None

    def _end_of_addition(self, text: str, turn: Turn, turns: Conversation) -> int:
        """Behind all that the template puts into the text for a turn."""
        if turn.message == len(turns) - 1:
            return len(text)
        alone = like(turns, turns[: turn.message + 1])
        rendered = render(alone, self.tokenizer)
        if text.startswith(rendered):
            return len(rendered)
        last = find_turns(rendered, alone, self.tokenizer)[-1]
        closing = rendered[last.end :]
        if text.startswith(closing, turn.end):
            return turn.end + len(closing)
        raise BadConversation(
            f"the end of message {turn.message} cannot be told from what follows it: the template "
            "rewrites history; mark that turn by train: false, or use conversations with one "
            "assistant turn"
        )

    def _kept(self, answer: list[int], tokens: Tokens, marked: list[tuple[int, int]]) -> list[int]:
        """Those of an answer's tokens that the template marks, and with them its end."""
        kept = [n for n in answer if _is_marked(*tokens.offsets[n], marked)]
        if not kept or kept[-1] == answer[-1] or tokens.ids[answer[-1]] not in self.control:
            return kept
        self._say(
            "the chat template's generation blocks leave out the token that ends a turn: it is "
            "learnt all the same, since the model would not learn to stop"
        )
        return kept + [n for n in answer if n > kept[-1]]

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)


def header_ids(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """The assistant header: the tokens between a user's turn and the words of the answer to it.

    It is what the generation prompt adds, and what the template always puts before an answer's
    words besides, such as an empty thinking block.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        chat_template_kwargs: variables of the template, see `with_template_defaults`.

    Raises:
        ValueError: the template has no generation prompt, so there is no header.
    """
    tokenizer = with_template_defaults(tokenizer, chat_template_kwargs)
    before = render(_ASKED, tokenizer)
    asked = render(_ASKED, tokenizer, add_generation_prompt=True)
    answered = Conversation(_ANSWERED)
    text = render(answered, tokenizer)
    start = find_turns(text, answered, tokenizer)[0].start
    whole = tokenize(text[:start], tokenizer).ids
    turn = tokenize(before, tokenizer).ids
    same = next((n for n, (a, b) in enumerate(zip(whole, turn, strict=False)) if a != b), None)
    header = whole[min(len(turn), len(whole)) if same is None else same :]
    if asked == before or not header:
        raise ValueError(
            "the chat template must add the assistant header for add_generation_prompt=True, got "
            f"{asked!r} for the turn {before!r}: use gate=False, which needs no header, or a "
            "template with a generation prompt"
        )
    return header


def end_of_turn_ids(tokenizer: Any) -> set[int]:
    """The tokens by which a model ends its answer: what the template puts behind the last turn, or
    where it puts nothing there, behind one that others follow.

    It is empty where the template puts no token of its own there.
    """
    return {closing[-1] for closing in _closings(tokenizer)[:1]}


def prompt_text(
    prompt: str | Sequence[Message],
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The text to generate from: the rendered turns and the assistant header.

    Args:
        prompt: the user's words, or a conversation, whose last turn is left out if it is the
            assistant's.
        tokenizer: a tokenizer with a chat template.
        chat_template_kwargs: variables of the template, see `with_template_defaults`.
    """
    tokenizer = with_template_defaults(tokenizer, chat_template_kwargs)
    said: Sequence[Message] = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    )
    turns = like(said, said)
    if turns and turns[-1]["role"] == "assistant":
        turns = like(turns, turns[:-1])
    return render(turns, tokenizer, add_generation_prompt=True)


def _closings(tokenizer: Any) -> list[list[int]]:
    """What ends a turn: the tokens from the answer's end to the control token that closes it.

    A template may close the last turn otherwise than those before it. What both begin with belongs
    to the turn; where that holds no control token, the first one of each is what closes it.
    """
    behind = [_behind(turns, tokenizer) for turns in ([*_ANSWERED], [*_ANSWERED, _NEXT])]
    control = control_ids(tokenizer)
    common = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(*behind, strict=False))]
    places = [n for n, token in enumerate(common) if token in control]
    if places:
        return [common[: places[-1] + 1]]
    control -= {tokenizer.bos_token_id}  # which may begin the next turn
    firsts = [next((n for n, t in enumerate(ids) if t in control), None) for ids in behind]
    return [ids[: n + 1] for ids, n in zip(behind, firsts, strict=True) if n is not None]


def _behind(turns: list[Message], tokenizer: Any) -> list[int]:
    """The tokens between the answer of an example and the next words, or the end."""
    conversation = Conversation(turns)
    try:
        text = render(conversation, tokenizer)
        turn = find_turns(text, conversation, tokenizer)[0]
    except BadConversation:  # a template that has no room for the example
        return []
    return tokenize(text[turn.end :].split(_NEXT["content"])[0].lstrip(), tokenizer).ids


def _is_marked(start: int, end: int, marked: Sequence[tuple[int, int]]) -> bool:
    """Whether text[start:end] shares a character with one of the runs, which are in order."""
    n = bisect_right(marked, start, key=itemgetter(1))  # the first that ends behind the start
    return n < len(marked) and max(marked[n][0], start) < min(marked[n][1], end)


def _check_rendered(text: str, turns: Conversation) -> None:
    """Refuse a template that leaves out what the user or the system says."""
    for n, message in enumerate(turns):
        words = message["content"].strip()
        escaped = json.dumps(words, ensure_ascii=False)[1:-1]
        if message["role"] in ("system", "developer", "user") and not (
            words in text or escaped in text
        ):
            raise BadConversation(
                f"the chat template must render every turn, and leaves out the content of message "
                f"{n}, of {message['role']!r}: take it out of the data, or use a template that "
                "renders it"
            )
