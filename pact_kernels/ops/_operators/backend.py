"""Where an operator's code lies: the same stem in `chunked` and in `kernels`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

PACKAGES = {"chunked": "chunked", "triton": "kernels"}


def backend(stem: str, implementation: str) -> ModuleType:
    """The module of an implementation that has the code for `stem`; triton is imported only here.

    The implementation is an argument of every operator, chosen where the op is called: its backward
    may run elsewhere.
    """
    return import_module(f"pact_kernels.{PACKAGES[implementation]}.{stem}")
