"""Where the assistant's own words stand in a rendered conversation, whatever template rendered it.

A template may put anything before, between and behind the words: headers, channels, a thinking
block, tags of tool calls. So the conversation is rendered a second time with marks in place of the
words. Where the marks are, the words are; what stands before the first one is the template's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from os.path import commonprefix
from typing import Any, NamedTuple

from pact.data.conversation import REASONING, Conversation, Message, call_name, is_trained, like
from pact.data.rendering import BadConversation, render

_THINKING_TAG = re.compile(r"(</?think(?:ing)?>|\[/?THINK\])")


class Words(NamedTuple):
    """One text of a message as its row has it."""

    turn: int
    """Which message it is in."""
    field: str
    """What it is in the message."""
    text: str
    """Without whitespace at its ends, which templates treat as they like."""


class Turn(NamedTuple):
    """An assistant's turn in a rendered text."""

    message: int
    """Its place among the messages."""
    start: int
    """The first character of the answer: what the template always puts before an answer's words, a
    thinking block for one, is not part of it."""
    end: int
    """Behind the last character of the words; of tool calls, of the last one's name."""


def find_turns(text: str, conversation: Conversation, tokenizer: Any) -> list[Turn]:
    """The turns to learn, in order.

    Args:
        text: the rendered conversation.
        conversation: its messages.
        tokenizer: whose template rendered it.

    Raises:
        BadConversation: words of the assistant's are not in the text, or in another form; or a turn
            stands first, so that nothing asks for it.
    """
    learnt = [n for n, message in enumerate(conversation) if is_trained(message)]
    if learnt[:1] == [0]:
        raise BadConversation(
            "a conversation must have a turn before the assistant's, got none: put the user's "
            "first, or mark the turn by train: false"
        )
    marks = _Marks(text)
    marked = [marks.put(m, n) if n in learnt else m for n, m in enumerate(conversation)]
    places = marks.find(render(like(conversation, marked), tokenizer), text, conversation)
    turns = []
    for n in learnt:
        own = [(*places[m], words.field) for m, words in enumerate(marks.words) if words.turn == n]
        start = _start(text, conversation, n, min(own, default=None), tokenizer)
        turns.append(Turn(n, start, max([end for _, end, _ in own], default=start)))
    return turns


class _Marks:
    """Marks in place of words, and what each stands for."""

    def __init__(self, text: str) -> None:
        taken = set(re.findall(r"Zmark(\d*)z", text))
        self.prefix = next(f"Zmark{n}z" for n in count() if str(n) not in taken)
        self.words: list[Words] = []

    def put(self, message: Message, turn: int) -> Message:
        """The message with a mark for each of its texts."""
        marked = dict(message)
        for name in REASONING:
            if name in message:
                marked[name] = self._mark(name, message[name], turn)
        pieces = _THINKING_TAG.split(message["content"])
        for n in range(0, len(pieces), 2):  # those between are the tags
            if pieces[n].strip():
                pieces[n] = self._mark("content", pieces[n], turn)
        marked["content"] = "".join(pieces)
        if "tool_calls" in message:
            marked["tool_calls"] = [self._renamed(call, turn) for call in message["tool_calls"]]
        return marked

    def find(
        self, marked: str, text: str, conversation: Conversation
    ) -> dict[int, tuple[int, int]]:
        """Where the words of each mark first stand in `text`."""
        places: dict[int, tuple[int, int]] = {}
        parts, length, before = [], 0, 0
        for match in re.finditer(rf"{self.prefix}(\d+)x", marked):
            words = self.words[int(match[1])].text
            parts += [marked[before : match.start()], words]
            length += match.start() - before + len(words)
            before = match.end()
            places.setdefault(int(match[1]), (length - len(words), length))
        parts.append(marked[before:])
        for mark, dropped in enumerate(self.words):
            if mark not in places:
                raise _dropped(dropped, conversation)
        if "".join(parts) != text:
            raise BadConversation(
                "the chat template must render the assistant's words as they are, and renders them "
                "in a form that depends on what they say: use another template or other words"
            )
        return places

    def _mark(self, field: str, text: str, turn: int) -> str:
        self.words.append(Words(turn, field, text.strip()))
        inner = f"{self.prefix}{len(self.words) - 1}x"
        return text[: len(text) - len(text.lstrip())] + inner + text[len(text.rstrip()) :]

    def _renamed(self, call: Any, turn: int) -> Any:
        name = self._mark("tool_calls", call_name(call), turn)
        if "function" in call:
            return {**call, "function": {**call["function"], "name": name}}
        return {**call, "name": name}


def _dropped(words: Words, conversation: Sequence[Message]) -> BadConversation:
    later = words.turn < len(conversation) - 1
    return BadConversation(
        f"the chat template must render all that the assistant says, and leaves out the "
        f"{words.field} {words.text:.40} of message {words.turn}: "
        + (
            "the template rewrites history (it may drop earlier thinking); mark that turn by "
            "train: false, or use conversations with one assistant turn"
            if later
            else "take it out of the data, or use a template that renders it"
        )
    )


def _start(
    text: str,
    conversation: Conversation,
    n: int,
    first: tuple[int, int, str] | None,
    tokenizer: Any,
) -> int:
    """Where the answer of message n begins; `first` are the place and field of its first words."""
    prompt = render(like(conversation, conversation[:n]), tokenizer, add_generation_prompt=True)
    asked = len(prompt) if text.startswith(prompt) else None
    opens_with_tag = not _THINKING_TAG.split(conversation[n]["content"])[0].strip()
    if first is not None and (
        first[2] in REASONING or first[2] == "content" and not opens_with_tag
    ):
        start = first[0]
    else:  # nothing, a tag or a tool call comes first
        opening = _opening(text, conversation, n, tokenizer)
        if text.startswith(opening):
            start = len(opening)
        elif first is not None and first[2] == "content":
            start = first[0]  # the template has its own way with tags
        elif asked is not None:
            start = asked if first is not None else max(asked, _same(text, opening))
        else:
            raise BadConversation(
                "the chat template must render an answer without words behind its header, and "
                f"renders message {n} otherwise: take the message out of the data"
            )
    # Whitespace behind the prompt is for the model to say, and may be part of its first token.
    if asked is not None and asked <= start and not text[asked:start].strip():
        return asked
    return start


def _opening(text: str, conversation: Conversation, n: int, tokenizer: Any) -> str:
    """What would stand before words in place of message n, from the beginning of the text; if
    none would stand there, what no text begins with."""
    marks = _Marks(text)
    words = marks.put({"role": "assistant", "content": "words"}, n)
    other = [*conversation[:n], words, *conversation[n + 1 :]]
    try:
        rendered = render(like(conversation, other), tokenizer)
    except BadConversation:  # a tool's answer may follow a call alone
        return words["content"]
    place = rendered.find(words["content"])
    return words["content"] if place < 0 else rendered[:place]


def _same(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    return len(commonprefix([one, other]))
