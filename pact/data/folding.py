"""A system turn within the user's first one, for chat templates that have no place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pact.data.conversation import Conversation, like
from pact.data.rendering import BadConversation, render

SYSTEM = ("system", "developer")
_WORD = "Zsystemz"


def renders_system(tokenizer: Any) -> bool:
    """Whether the chat template says what a system turn says."""
    asked = Conversation(
        [{"role": "system", "content": _WORD}, {"role": "user", "content": "Hello"}]
    )
    try:
        return _WORD in render(asked, tokenizer)
    except BadConversation:
        return False


def folding(tokenizer: Any, fold_system: bool) -> Callable[[Conversation], Conversation]:
    """`folded` where it is asked for and the template has no place; else nothing is done."""
    return folded if fold_system and not renders_system(tokenizer) else lambda same: same


def folded(conversation: Conversation) -> Conversation:
    """The system turn's words, an empty line, and the user's, in the user's turn.

    Raises:
        BadConversation: no user's turn follows it.
    """
    if not conversation or conversation[0]["role"] not in SYSTEM:
        return conversation
    system, *rest = conversation
    if not rest or rest[0]["role"] != "user":
        raise BadConversation(
            "a system turn is put into the user's turn behind it, got none there: take it out"
        )
    first = {**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}
    return like(conversation, [first, *rest[1:]])
