"""The package's torch.library namespace and how an operator is registered in it.

An operator is defined once by its schema; one Python function serves every device, and a fake
function gives its output shapes. A backward is an operator of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "pact_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `pact_kernels::name` with `schema` "(Tensor ..., ...) -> results", and return it.

    Autocast ends where the operator begins: its inputs come cast, and its sums stay in fp32.
    """

    def in_given_dtypes(*inputs: Any) -> Any:
        device = inputs[0].device.type
        if not autocast_enabled(device):
            return run(*inputs)
        with torch.autocast(device, enabled=False):
            return run(*inputs)

    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, in_given_dtypes, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.pact_kernels, name).default


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Differentiate `pact_kernels::name` once, by `backward`; a second time is refused.

    A gradient formed in the forward pass, or by a fused backward, has no graph of its own.
    `torch.library.register_autograd` does the same, but walks the schema once more for every
    argument of a call: half a millisecond with forty of them.
    """
    operator = getattr(torch.ops.pact_kernels, name).default

    def below(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = below(*inputs)
        setup_context(ctx, inputs, output)
        return output

    def once(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{NAMESPACE}::{name} has no second derivative: drop create_graph=True, or use "
                "pk.implementation('naive')"
            )
        return backward(ctx, *grads)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(once)}
    function: Any = type(f"{NAMESPACE}_{name}", (torch.autograd.Function,), methods)

    def differentiated(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return function.apply(*inputs)
        return below(*inputs)

    LIBRARY.impl(name, differentiated, "Autograd")


def autocast_enabled(device_type: str) -> bool:
    """Whether an autocast region for this kind of device is open."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
