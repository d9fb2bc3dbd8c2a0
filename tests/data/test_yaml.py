"""Files of settings: what is YAML and still no settings is refused in one line."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from pact.common.printable import PrintableFormatter, printable
from pact.common.settings import (
    DEEPEST,
    MOST_BYTES,
    read_mapping,
    read_values,
    read_yaml,
    settings_of,
    user_path,
)

BOMB = "a: &a {x: 1}\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in ["ab", "bc", "cd"])


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    rate: float = 1.0
    """A rate."""
    kwargs: dict[str, object] | None = None
    """A mapping."""


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3", r"'a' stands twice: leave one of them.*line 3"),
        ("a: {b: 1,\n  b: 2}", r"'b' stands twice.*line 2"),
        ("- - {1: 1, 0x1: 2}", r"1 stands twice"),
        (BOMB, r"\*a is of a list or mapping: write it out.*line 2"),
        ("&a [*a]", r"\*a is of a list or mapping"),
        ("[" * 5000, f"more than {DEEPEST} deep"),
        ("{a: " * (DEEPEST + 1), f"more than {DEEPEST} deep"),
        ("a: 2020-99-99", "month must be"),
        ("a: !!bool x", "cannot be read"),
        ("a: !!int _", "cannot be read"),
        ("a: !!timestamp x", "cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("? [1]\n: 2", "unhashable"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
        ("a: 1\n---\na: 2", "single document"),
    ],
)
def test_what_is_no_settings_is_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)config file .*run.yaml must be YAML.*{message}"):
        read_mapping(path)


def test_single_values_have_aliases_and_nested_ones_a_limit():
    assert read_yaml("a: &a 5\nb: *a\nc: [*a, *a]") == {"a": 5, "b": 5, "c": [5, 5]}
    assert read_yaml("a: {<<: {b: 1}, b: 2}") == {"a": {"b": 2}}
    levels = DEEPEST - 1  # and the value itself
    assert read_yaml("[" * levels + "1" + "]" * levels)


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="must be YAML, got: 'utf-8' codec"):
        read_mapping(path)
    path.write_text("# " + "a" * MOST_BYTES)
    with pytest.raises(ValueError, match="is no file of settings"):
        read_mapping(path)
    with pytest.raises(ValueError, match="nosuchuser"):
        read_mapping(Path("~nosuchuser/run.yaml"))
    assert user_path("~") == Path.home()


def test_errors_show_values_in_a_few_characters():
    settings = settings_of([Config])
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 10**6, 10**400, deep, [1] * 10**6, {"a": "b" * 10**6}):
        with pytest.raises(ValueError, match="rate in run.yaml must be float") as caught:
            read_values({"rate": value}, settings, "run.yaml")
        assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="the nearest is") as caught:
        read_values({"rat" * 10**6: 1}, settings, "run.yaml")
    assert len(str(caught.value)) < 300


def test_what_a_terminal_obeys_is_escaped():
    assert printable("Grüße, 世界 🙂\n\tand\u00a0so") == "Grüße, 世界 🙂\n\tand\u00a0so"
    assert printable("\x1b[31mred\x07\x9b1m\r") == r"\x1b[31mred\x07\x9b1m\r"
    assert printable("\u202egnp.exe\u2066") == r"\u202egnp.exe\u2066"
    assert printable("\ud800\u2028") == r"\ud800\u2028"


def test_records_are_escaped_with_their_arguments():
    record = logging.LogRecord("pact", 20, "", 0, "read %s", ("\x1b]0;title\x07",), None)
    assert PrintableFormatter("%(name)s: %(message)s").format(record) == (
        r"pact: read \x1b]0;title\x07"
    )


def test_mappings_are_merged() -> None:
    text = "base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\n"
    assert read_yaml(text)["mine"] == {"a": 1, "b": 3}
    with pytest.raises(ValueError, match="write it out"):
        read_yaml("base: &base {a: 1}\nmine: *base\n")
