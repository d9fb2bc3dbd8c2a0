"""One stem names one op at every level.

Which package may import which is in `[tool.importlinter]` of pyproject.toml and checked by
`make lint`; what must be imported late in `tests/test_import.py`.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_stem_names_one_op_at_every_level() -> None:
    ops = {path.stem for path in (ROOT / "pact_kernels/ops").glob("*.py")}
    for path in (ROOT / "pact_kernels/naive").glob("*.py"):
        if path.stem not in ("__init__", "logits"):
            assert path.stem in ops
            assert (ROOT / f"tests/ops/test_{path.stem}.py").exists()


def test_what_the_ops_dispatch_to_stands_in_both_packages_under_one_stem() -> None:
    """`backend` imports by name, which no graph of imports shows."""
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
