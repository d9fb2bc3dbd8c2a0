"""Where an operator's code lies: the same stem in `chunked` and in `kernels`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import Tensor

from pact_kernels.implementation import uses_triton


def backend(stem: str, tensor: Tensor) -> ModuleType:
    """The module that implements `stem` for tensors like this one; triton is imported only here."""
    package = "kernels" if uses_triton(tensor) else "chunked"
    return import_module(f"pact_kernels.{package}.{stem}")
