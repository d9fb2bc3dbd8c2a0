"""Files with a few changes, as damage, mistakes and malice make them."""

from __future__ import annotations

import random
import re
import struct

SIZES = (0, 1, -1, 2**7, 2**15, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**63 - 1, -(2**63))
"""Numbers at which sizes and places go wrong."""
WORDS = (
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 30,
    b'""',
    b"[]",
    b"{}",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\x00",
    b"\x1b[31m",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b'"',
    b",",
    b": ",
    b"&a ",
    b"*a",
    b"!!bool ",
    b"!!int ",
    b"2020-99-99",
    b"<<: ",
    b"[" * 200,
    b'{"a":' * 200,
)
"""What is put into texts."""
_NUMBER = re.compile(rb"-?\d+")


def mutated(data: bytes, stream: random.Random, most: int = 4) -> bytes:
    """The data after one to `most` changes."""
    for _ in range(stream.randint(1, most)):
        data = stream.choice(_CHANGES)(data, stream)
    return data


def _place(data: bytes, stream: random.Random) -> int:
    return stream.randint(0, len(data))


def _run(data: bytes, stream: random.Random) -> tuple[int, int]:
    """A short run of bytes, or a long one."""
    start = _place(data, stream)
    longest = stream.choice((1, 4, 16, 64, len(data)))
    return start, min(len(data), start + stream.randint(0, longest))


def _flip(data: bytes, stream: random.Random) -> bytes:
    if not data:
        return data
    place = stream.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << stream.randrange(8)]) + data[place + 1 :]


def _cut(data: bytes, stream: random.Random) -> bytes:
    return data[: _place(data, stream)]


def _remove(data: bytes, stream: random.Random) -> bytes:
    start, end = _run(data, stream)
    return data[:start] + data[end:]


def _repeat(data: bytes, stream: random.Random) -> bytes:
    start, end = _run(data, stream)
    return data[:end] + data[start:end] * stream.choice((1, 1, 3)) + data[end:]


def _move(data: bytes, stream: random.Random) -> bytes:
    start, end = _run(data, stream)
    rest = data[:start] + data[end:]
    place = _place(rest, stream)
    return rest[:place] + data[start:end] + rest[place:]


def _word(data: bytes, stream: random.Random) -> bytes:
    place = _place(data, stream)
    return data[:place] + stream.choice(WORDS) + data[place:]


def _size(data: bytes, stream: random.Random) -> bytes:
    """A number of four or eight bytes in place of others, where formats align theirs."""
    kind, mask = stream.choice((("<i", 2**32 - 1), ("<q", 2**64 - 1)))
    packed = struct.pack(kind.upper(), stream.choice(SIZES) & mask)
    place = _place(data, stream) // 4 * 4
    return data[:place] + packed + data[place + len(packed) :]


def _number(data: bytes, stream: random.Random) -> bytes:
    """Another number in place of one that is written out."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    match = stream.choice(found)
    return data[: match.start()] + str(stream.choice(SIZES)).encode() + data[match.end() :]


_CHANGES = (_flip, _cut, _remove, _repeat, _move, _word, _size, _number)
