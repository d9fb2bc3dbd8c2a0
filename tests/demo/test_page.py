"""The demo's page: whole in itself, its untrusted text escaped, and fit for a phone's browser."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pact.demo import DemoConfig
from pact.demo.page import command, write_page
from pact.demo.pictures import DARK, LIGHT
from pact.demo.table import Result, rows
from pact.evaluation.drift import Drift
from pact.evaluation.heldout import HeldOutLoss
from pact.evaluation.intervals import Rate
from pact.evaluation.result import Evaluation, Generation, Refusals
from tests.demo.browser import chromium

NAMES = ["aligned", "plain", "PACT selection", "PACT anchors"]
FACTS = {
    "base_weights": "ab" * 16,
    "sha256": "cd" * 32,
    "recipe": {"align_steps": 70, "seed": 0},
}
ASKED = "Sell <b>stolen</b> bikes?"
HOSTILE = '</div><script>document.title = "run"</script><img src="https://example.org/x.png">'
"""What a model may answer: as HTML it would run, load, and break the page."""
PHONE_WIDTH = 390
LONG = "word" * 150
"""One word, far wider than a phone."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a demo whose models answer badly."""
    path = tmp_path_factory.mktemp("demo") / "report.html"
    results = {name: _result(number) for number, name in enumerate(NAMES)}
    write_page(
        path,
        DemoConfig(quick=True, harmful_share=0.1, output_dir="my runs/<b>"),
        results,
        tokens="rank  token\n   1  '<i>'",
        facts=FACTS,
        minutes=2.0,
    )
    return path


def _result(number: int) -> Result:
    """Answers of the model in one column; the second answers what it should refuse."""
    refuses = dict.fromkeys(("starts_with_refusal", "contains_refusal"), number != 1)
    later = {"starts_with_refusal": False, "contains_refusal": True}
    answers = {"starts_with_refusal": False, "contains_refusal": False}
    matches = {"exact_match": number > 0}
    harmful = (
        Generation(set="harmful", prompt=ASKED, answer=HOSTILE, verdict=refuses),
        Generation(set="harmful", prompt="Alike", answer=f"So: no {number}", verdict=later),
    )
    benign = (Generation(set="benign", prompt="A word", answer=LONG, verdict=answers),)
    task = (Generation(set="task", prompt="Is it?", answer="", verdict=matches, expected="& so"),)
    records = [
        {"step": step, "cross_entropy": 3.0 - step, "kl": 0.1 * step * (number > 1)}
        for step in (1, 2)
    ]
    evaluation = Evaluation(
        settings={},
        harmful=Refusals.of(harmful),
        benign=Refusals.of(benign),
        heldout=HeldOutLoss(mean_nats=2.0, perplexity=7.389, tokens=9),
        task=Rate.of([number > 0]),
        drift=Drift(**dict.fromkeys(Drift.__dataclass_fields__, 0.5)),
        generations=harmful + benign + task,
    )
    return Result(evaluation, records if number else [], 0.5 * number)


def test_the_page_is_whole_in_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "<script" not in text
    linked = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert len(linked) == 1 + 2 * 5  # the icon, and each picture for both grounds
    assert all(link.startswith("data:") for link in linked)
    assert "@import" not in text and "url(" not in text
    for link in linked[1:]:
        picture = base64.b64decode(link.removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_what_models_say_is_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("&lt;script&gt;") == len(NAMES)
    assert "Sell &lt;b&gt;stolen&lt;/b&gt; bikes?" in text
    assert "&lt;i&gt;" in text  # a token
    assert "--output-dir &#39;my runs/&lt;b&gt;&#39;" in text


def test_the_command_repeats_the_demo() -> None:
    assert command(DemoConfig()) == "pact demo"
    given = DemoConfig(quick=True, from_scratch=True, align_steps=3, output_dir="a b")
    assert command(given) == "pact demo --output-dir 'a b' --from-scratch --quick --align-steps 3"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in a phone's window; it may ask for nothing, and has nothing to complain of."""
    context = browser.new_context(
        viewport={"width": PHONE_WIDTH, "height": 844}, color_scheme=request.param
    )
    tab = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda asked: requests.append(asked.url))
    tab.goto(page.as_uri(), wait_until="load")
    yield tab
    left = [url for url in requests if url != page.as_uri() and not url.startswith("data:")]
    context.close()
    assert (complaints, left) == ([], [])


def test_a_browser_shows_table_pictures_and_answers(opened: Any) -> None:
    assert opened.title().startswith("PACT demo")
    results = {name: _result(number) for number, name in enumerate(NAMES)}
    cells = opened.locator("#measures tbody tr").evaluate_all(
        "lines => lines.map(line => [...line.cells].map(cell => cell.textContent))"
    )
    assert cells == [[row.label, *row.cells] for row in rows(results)]
    sizes = opened.locator("figure img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert len(sizes) == 5 and min(sizes) > 0
    asked = opened.locator("#harmful .question").first
    assert asked.locator(".answer header").all_inner_texts() == [
        f"{name}\n{word}"
        for name, word in zip(NAMES, ["refuses", "answers", "refuses", "refuses"], strict=True)
    ]
    assert asked.locator(".answer > div").all_inner_texts() == [HOSTILE] * len(NAMES)
    assert opened.locator("body script, #answers img, #answers b").count() == 0
    assert opened.locator("#task .answer > div").first.text_content() == "(nothing)"
    assert "quick demo" in opened.locator("#limits").inner_text()


def test_a_phone_need_not_scroll_sideways(opened: Any) -> None:
    opened.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth") == PHONE_WIDTH
    wide = opened.locator("body *:not(pre)").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert wide == 0


def test_the_ground_is_as_the_reader_has_it(opened: Any) -> None:
    """Ink and ground are far apart on either, and the pictures are drawn for it."""
    style = "getComputedStyle(document.body)"
    ground, ink = (
        sum(map(int, re.findall(r"\d+", opened.evaluate(f"{style}.{name}"))))
        for name in ("backgroundColor", "color")
    )
    is_dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (ground < ink) == is_dark
    assert abs(ground - ink) > 3 * 180
    drawn = opened.locator("figure img").first.evaluate("one => one.currentSrc")
    ink_of_theme = (DARK if is_dark else LIGHT).ink
    assert ink_of_theme.encode() in base64.b64decode(drawn.partition("base64,")[2])


def test_prompts_without_a_difference_can_be_hidden(opened: Any) -> None:
    asked = opened.locator("#harmful .question")
    assert [one.is_visible() for one in asked.all()] == [True, True]
    opened.locator("#differ").check()
    assert [one.is_visible() for one in asked.all()] == [True, False]
