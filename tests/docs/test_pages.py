"""Pages lead somewhere, and their figures are those of the recorded files."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import pact
import pact_kernels
from benchmarks.reporting.pages import PAGES, RESULTS, SECTIONS, rendered
from tests.docs.blocks import ROOT, pages, read

LINK = re.compile(r"\]\(([^)\s]+)\)")
MARKER = re.compile(r"<!-- ([a-z-]+): begin -->")
REFERENCE = {"pact_kernels": pact_kernels.__all__, "pact": pact.__all__}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_records_give(page: str) -> None:
    assert rendered(read(page)) == read(page), "run python -m benchmarks report"


def test_every_section_is_on_a_page() -> None:
    assert {name for page in PAGES for name in MARKER.findall(read(page))} == set(SECTIONS)


def test_a_section_that_nobody_makes_is_refused() -> None:
    with pytest.raises(ValueError, match="a section must be of measured.*, got spede"):
        rendered("<!-- spede: begin -->\n| 1 |\n<!-- spede: end -->\n")


def test_figures_are_those_of_the_files() -> None:
    """Three, each by another way than the page took."""
    lines = (RESULTS / "ops.csv").read_text(encoding="utf-8").splitlines()
    head = "linear_cross_entropy,1,512,576,49152,float32,0,False"
    (ours,) = (x for x in lines if x.startswith(head) and ",pact-kernels," in x)
    names = lines[0].split(",")
    place = names.index("p50_ms") + 1  # the machine's name has a comma
    assert f"| {float(ours.split(',')[place]):.0f} ms |" in SECTIONS["cross-entropy"]()
    steps = (RESULTS / "h200" / "training_step_8b.jsonl").read_text(encoding="utf-8")
    (ms,) = re.findall(r'"4 x 2048", "side": "released algorithm", "ms": ([\d.]+)', steps)
    assert f"| {float(ms):.0f} ms, " in SECTIONS["measured"]()
    benign = read("docs/evidence.md").partition("### Fine-tuned on: benign only")[2]
    row = re.search(r"^\| plain \| ([^|]+) \|", benign, re.M)
    assert row and f"| plain | {row[1]} |" in SECTIONS["measured"]()


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 90


@pytest.mark.parametrize("page", [*pages(), "CONTRIBUTING.md"])
def test_links_lead_to_files(page: str) -> None:
    """Headings are looked at by `make docs`."""
    for target in LINK.findall(read(page)):
        path, _, _ = target.partition("#")
        if path and not target.startswith(("http://", "https://")):
            assert ((ROOT / page).parent / path).exists(), target


@pytest.mark.parametrize("package", REFERENCE)
def test_the_reference_has_every_public_name(package: str) -> None:
    names = re.findall(r"^::: ([\w.]+)$", read(f"docs/reference/{package}.md"), re.M)
    assert {f"{package}.{name}" for name in REFERENCE[package] if name != "__version__"} <= {*names}
    for name in names:
        module, _, last = name.rpartition(".")
        if "axolotl" not in module:  # its interface is not installed
            assert getattr(import_module(module), last).__doc__, name


def test_every_page_is_in_the_menu() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    listed = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    there = {str(Path(page).relative_to("docs")) for page in pages() if page != "README.md"}
    assert there <= listed


def test_the_examples_that_a_page_names_are_there() -> None:
    named = {name for page in pages() for name in re.findall(r"examples/([\w.]+\w)", read(page))}
    table = re.findall(r"`([\w]+\.(?:py|sh|yaml))`", read("docs/getting-started.md"))
    there = {path.name for path in (ROOT / "examples").iterdir() if path.is_file()}
    assert {*table} == there and named <= there
