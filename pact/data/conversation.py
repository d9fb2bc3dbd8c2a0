"""Conversations: messages, and what else their row says of how they are rendered and learnt.

A message is {"role", "content"}, and where the row has them:

    reasoning_content, reasoning, thinking    an assistant's thoughts, as its template calls them
    tool_calls                                an assistant's calls, in the form of chat templates
    name, tool_call_id                        of a tool's answer
    train: False                              an assistant's turn that is read and not learnt
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

REASONING = ("reasoning_content", "reasoning", "thinking")
"""What chat templates call an assistant's thoughts."""

_TRAIN = ("train", "training")
_UNREADABLE = {
    "function_call": "write the call as tool_calls",
    "refusal": "put the refusal's words into content",
    "audio": "text alone is read",
    "image": "text alone is read",
    "images": "text alone is read",
    "video": "text alone is read",
    "videos": "text alone is read",
    "train_detail": "mark whole turns by train",
    "training_detail": "mark whole turns by train",
    "prefix": "give the whole answer as content",
    "partial": "give the whole answer as content",
}
"""Fields that change what a message means and cannot be followed, with the way out."""


class Conversation(list[Message]):
    """Messages in order; it equals a list of the same messages.

    Args:
        messages: the messages.
        tools: descriptions of the tools that the model may call, as chat templates take them.
        template_kwargs: variables of the chat template for this conversation alone.
        where: what errors call it, such as "line 3 of chats.jsonl".
    """

    def __init__(
        self,
        messages: Iterable[Message] = (),
        *,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        where: str = "",
    ) -> None:
        super().__init__(messages)
        self.tools = list(tools) if tools else None
        self.template_kwargs = dict(template_kwargs or {})
        self.where = where


def like(conversation: Sequence[Message], messages: Iterable[Message]) -> Conversation:
    """Other messages with the tools and template variables of a conversation."""
    return Conversation(
        messages,
        tools=getattr(conversation, "tools", None),
        template_kwargs=getattr(conversation, "template_kwargs", None),
        where=getattr(conversation, "where", ""),
    )


def is_trained(message: Message) -> bool:
    """Whether a message is to be learnt: an assistant's, unless it says otherwise."""
    return message["role"] == "assistant" and message.get("train") is not False


def read_message(message: Any, where: str, follows_call: bool) -> tuple[Message, set[str]]:
    """A message as it came, checked.

    Args:
        message: an object with role and content.
        where: what errors call it.
        follows_call: whether an assistant's tool call stands before it.

    Returns:
        The message, and the names of fields that were left out since nothing reads them.

    Raises:
        ValueError: it is malformed, or has a field that cannot be followed.
    """
    if (
        not isinstance(message, Mapping)
        or "role" not in message
        or not ("content" in message or message.get("tool_calls"))
    ):
        raise ValueError(f"{where} must have a role and a content, got {message!r:.80}")
    given = {name: value for name, value in message.items() if value is not None}
    role = given.pop("role", None)
    _check_role(role, where, follows_call)
    for name, fix in _UNREADABLE.items():
        if given.pop(name, None):
            raise ValueError(f"{where}: the field {name!r} cannot be followed: {fix}")
    read: Message = {"role": role, "content": _content(given, where)}
    given.pop("content", None)
    if _is_left_out(role, given, where):
        read["train"] = False
    if role == "assistant":
        read |= _thoughts(given, where) | _calls(given, where)
    for name in ("name", "tool_call_id") if role == "tool" else ():
        if name in given:
            read[name] = given.pop(name)
    return read, set(given)


def _check_role(role: Any, where: str, follows_call: bool) -> None:
    roles = ("system", "developer", "user", "assistant")
    if role not in roles and not (role == "tool" and follows_call):
        raise ValueError(
            f"{where}: role must be one of {roles}, or 'tool' after an assistant's tool_calls, got "
            f"{role!r}"
        )


def _content(given: Mapping[str, Any], where: str) -> str:
    content = given.get("content")
    if content is None and given.get("tool_calls"):
        return ""
    if isinstance(content, (list, tuple)):
        return "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{where}: content must be a string, got {content!r:.80}")
    return content


def _part(part: Any, where: str) -> str:
    """The text of a part of a content."""
    text = part.get("text") if isinstance(part, Mapping) else part
    kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
    if kind != "text" or not isinstance(text, str):
        raise ValueError(
            f"{where}: a content's parts must be texts, got one of type {kind!r}: {part!r:.60}"
        )
    return text


def _is_left_out(role: str, given: dict[str, Any], where: str) -> bool:
    """Whether `weight` or `train` takes a turn out of what is learnt."""
    said: dict[str, bool] = {}
    for name in ("weight", *_TRAIN):
        value = given.pop(name, None)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise ValueError(
                f"{where}: {name} must be 0 or 1, or false or true, got {value!r}: a turn is "
                "learnt whole or not at all"
            )
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise ValueError(f"{where}: {' and '.join(said)} contradict each other, got {said}")
    if role != "assistant" and any(said.values()):
        raise ValueError(
            f"{where}: the assistant's turns alone are learnt, got {said} on a turn of {role!r}: "
            "leave it out there"
        )
    return role == "assistant" and bool(said) and not any(said.values())


def _thoughts(given: dict[str, Any], where: str) -> Message:
    thoughts: Message = {}
    for name in REASONING:
        value = given.pop(name, None)
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{where}: {name} must be a string, got {value!r:.80}")
        if value.strip():
            thoughts[name] = value
    if len(thoughts) > 1:
        raise ValueError(
            f"{where}: thoughts are read from one field, got {' and '.join(thoughts)}: leave one"
        )
    return thoughts


def _calls(given: dict[str, Any], where: str) -> Message:
    calls = given.pop("tool_calls", None)
    if not isinstance(calls, (list, tuple, type(None))):
        raise ValueError(f"{where}: tool_calls must be a list, got {calls!r:.80}")
    for call in calls or ():
        if not isinstance(call_name(call), str):
            raise ValueError(
                f"{where}: a tool call must be an object with function.name, got {call!r:.80}"
            )
    return {"tool_calls": list(calls)} if calls else {}


def call_name(call: Any) -> Any:
    """The name of the function that a tool call is of."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None
