"""The package's torch.library namespace and how an operator is registered in it.

An operator is defined once by its schema; the CPU and CUDA keys share one Python function, a fake function
gives its output shapes, and a backward is an operator of its own that refuses to be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

NAMESPACE = "pact_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `pact_kernels::name` with `schema` "(arguments) -> results" and return its overload."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run, "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.pact_kernels, name).default


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Differentiate `pact_kernels::name` by `backward`."""
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )


def refuse_double_backward(name: str) -> None:
    """Let the backward operator `name` raise when it is differentiated in turn."""

    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            f"{NAMESPACE}::{name} has no second derivative, since its gradient is formed in the forward "
            "pass or by a fused backward: drop create_graph=True, or use pk.implementation('naive')"
        )

    register_autograd(name, backward, lambda ctx, inputs, output: None)
