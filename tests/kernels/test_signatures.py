"""Kernels take nouns, not lists of pointers: no signature has more than a dozen.

Tiles do not count: Triton before 3.9 wants a tensor descriptor beside its matrix.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from triton.runtime.jit import JITFunction

import pact_kernels.kernels as package

MOST = 12
FILES = sorted(Path(package.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_signatures(path: Path) -> None:
    name = ".".join(path.relative_to(Path(package.__file__).parent).with_suffix("").parts)
    module = import_module(f"{package.__name__}.{name}".removesuffix(".__init__"))
    for function in vars(module).values():
        if isinstance(function, JITFunction) and function.fn.__module__ == module.__name__:
            names = inspect.signature(function.fn).parameters
            nouns = [name for name in names if not name.endswith("_tiles")]
            assert len(nouns) <= MOST, function.fn.__name__
