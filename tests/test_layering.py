"""Imports run one way; an upward edge fails here, before it makes a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "matplotlib", "numpy")


class Import(NamedTuple):
    """One imported module, where it is imported."""

    importer: str
    """Dotted name of the module that imports."""
    imported: str
    """Dotted name of what is imported; `from a import b` counts as a.b, module or not."""
    line: int
    lazy: bool
    """Inside a function."""
    typing_only: bool
    """Under `if TYPE_CHECKING:`."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def found(
    node: ast.AST, path: Path, lazy: bool = False, typing_only: bool = False
) -> Iterator[Import]:
    """Imports below a syntax node."""
    importer = module_name(path)
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(importer, alias.name, node.lineno, lazy, typing_only)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = f"{package}.{base}".rstrip(".")
        for alias in node.names:
            yield Import(importer, f"{base}.{alias.name}", node.lineno, lazy, typing_only)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from found(child, path, lazy, True)
        for child in node.orelse:
            yield from found(child, path, lazy, typing_only)
        return
    inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from found(child, path, inner, typing_only)


IMPORTS = [
    edge
    for package in ("pact_kernels", "pact", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    for edge in found(ast.parse(path.read_text(encoding="utf-8")), path)
]


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def edges(importer: str, *imported: str) -> list[Import]:
    """Imports of some packages by the modules of another, those for type checkers left out."""
    return [
        edge
        for edge in IMPORTS
        if within(edge.importer, importer)
        and within(edge.imported, *imported)
        and not edge.typing_only
    ]


def assert_none(found_edges: list[Import]) -> None:
    assert not found_edges, "\n".join(map(str, found_edges))


# What a package may never import, however lazily.
FORBIDDEN = {
    "pact_kernels": (
        "pact",
        "benchmarks",
        "tests",
        "transformers",
        "datasets",
        "accelerate",
        "peft",
    ),
    "pact_kernels.types": ("pact_kernels",),
    "pact_kernels.dispatch": (
        "pact_kernels.ops",
        "pact_kernels.chunked",
        "pact_kernels.kernels",
        "pact_kernels.naive",
    ),
    "pact_kernels.common": (
        "pact_kernels.ops",
        "pact_kernels.chunked",
        "pact_kernels.kernels",
        "pact_kernels.naive",
    ),
    "pact_kernels.naive": ("pact_kernels.ops", "pact_kernels.chunked", "pact_kernels.kernels"),
    "pact_kernels.chunked": ("pact_kernels.ops", "pact_kernels.naive", "pact_kernels.kernels"),
    "pact_kernels.kernels": ("pact_kernels.ops", "pact_kernels.chunked", "pact_kernels.naive"),
    "pact": (
        "pact_kernels.naive",
        "pact_kernels.chunked",
        "pact_kernels.kernels",
        "benchmarks",
        "tests",
    ),
    "pact.data": ("pact.training", "pact.evaluation", "pact.demo", "pact.cli"),
    "pact.discovery": ("pact.training", "pact.evaluation", "pact.demo", "pact.cli"),
    "pact.reference": ("pact.training", "pact.evaluation", "pact.demo", "pact.cli"),
    "pact.objective": ("pact.training", "pact.evaluation", "pact.demo", "pact.cli"),
    "pact.training": ("pact.demo", "pact.cli"),
    "pact.evaluation": ("pact.training", "pact.demo", "pact.cli"),
    "pact.demo": ("pact.recipes", "pact.cli"),
    "pact.recipes": ("pact.demo", "pact.cli"),
    "pact.settings": ("pact.cli", "pact.recipes", "pact.training", "pact.evaluation"),
}


@pytest.mark.parametrize("importer", FORBIDDEN)
def test_nothing_is_imported_upwards(importer: str) -> None:
    path = ROOT.joinpath(*importer.split("."))
    assert path.is_dir() or path.with_suffix(".py").is_file()  # the table names what exists
    assert_none(edges(importer, *FORBIDDEN[importer]))


def test_the_oracle_is_imported_lazily_and_from_the_ops_alone() -> None:
    """Besides tests and benchmarks: it is the code of no default."""
    for edge in edges("pact_kernels", "pact_kernels.naive"):
        if not within(edge.importer, "pact_kernels.naive"):
            assert within(edge.importer, "pact_kernels.ops") and edge.lazy, str(edge)


def test_triton_is_imported_in_kernels_alone() -> None:
    for package in ("pact_kernels", "pact"):
        for edge in edges(package, "triton"):
            assert within(edge.importer, "pact_kernels.kernels"), str(edge)
    for edge in edges("pact_kernels", "pact_kernels.kernels"):
        if not within(edge.importer, "pact_kernels.kernels"):
            assert within(edge.importer, "pact_kernels.ops") and edge.lazy, str(edge)


def test_the_objective_takes_tensors_never_a_model_or_a_tokenizer() -> None:
    assert_none(edges("pact.objective", "pact.models", "pact.data", "transformers", "tokenizers"))


def test_the_command_line_imports_what_is_heavy_inside_its_commands() -> None:
    heavy = (*HEAVY, "pact_kernels", "pact.training", "pact.discovery", "pact.evaluation")
    assert_none([edge for edge in edges("pact.cli", *heavy) if not edge.lazy])


def test_every_stem_names_one_op_at_every_level() -> None:
    ops = {path.stem for path in (ROOT / "pact_kernels/ops").glob("*.py")}
    for path in (ROOT / "pact_kernels/naive").glob("*.py"):
        if path.stem not in ("__init__", "logits"):
            assert path.stem in ops
            assert (ROOT / f"tests/ops/test_{path.stem}.py").exists()


def test_what_the_ops_dispatch_to_stands_in_both_packages_under_one_stem() -> None:
    """`backend` imports by name, which the walk over the imports does not see."""
    stems = set()
    for path in (ROOT / "pact_kernels/ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "backend":
                stem = ast.literal_eval(node.args[0])
                assert path.stem == stem
                stems.add(stem)
    assert {"head_loss", "selection_kl", "token_scores"} <= stems
    for stem in stems:
        for package in ("chunked", "kernels"):
            assert (ROOT / f"pact_kernels/{package}/{stem}.py").is_file()


def test_this_test_sees_an_upward_edge() -> None:
    source = """
import triton
from . import trainer
from ..cli import main
if TYPE_CHECKING:
    from pact.models import Head
def late():
    from pact_kernels.naive.logits import logits
"""
    path = ROOT / "pact/training/imagined.py"
    assert [edge[1:] for edge in found(ast.parse(source), path)] == [
        ("triton", 2, False, False),
        ("pact.training.trainer", 3, False, False),
        ("pact.cli.main", 4, False, False),
        ("pact.models.Head", 6, False, True),
        ("pact_kernels.naive.logits.logits", 8, True, False),
    ]
