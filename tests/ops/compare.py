"""An op beside its oracle: values and gradients of both, from equal leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pact_kernels as pk

TINY_MIB = 0.012
"""Eight fp64 rows and 64 tokens at once: `problem` falls into several chunks, blocks and tiles, the
last of each ragged."""
UPSTREAM = 0.37
"""Factor between the op and the loss: a backward that forgets the incoming gradient shows."""

Call = Callable[[Tensor, Tensor, Tensor | None], Any]


def outcome(
    call: Call,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    implementation: str = "chunked",
    trained: bool = True,
    mib: float = TINY_MIB,
) -> dict[str, Tensor]:
    """Values of call(hidden, weight, bias), and its gradients by the three.

    A value that is no scalar gets a different incoming gradient in every place.
    """
    h = hidden.detach().clone().requires_grad_()
    w = weight.detach().clone().requires_grad_(trained)
    b = None if bias is None else bias.detach().clone().requires_grad_(trained)
    with pk.implementation(implementation), pk.workspace(mib):
        out = call(h, w, b)
        named = out._asdict() if isinstance(out, pk.PactLoss) else {"value": out}
        value = next(iter(named.values()))
        incoming = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        (UPSTREAM * incoming * value).sum().backward()
    found = {name: tensor.detach() for name, tensor in named.items()}
    leaves = {"by_hidden": h, "by_weight": w, "by_bias": b}
    return found | {
        name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad
    }


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest error over the largest expected magnitude."""
    if expected.numel() == 0:
        return 0.0
    scale = expected.double().abs().max().clamp(min=1e-9)
    return float((got.double() - expected.double()).abs().max() / scale)


def assert_same(
    got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10
) -> None:
    """Equal names, shapes and dtypes, and values within a relative error (fp64 both)."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        assert got[name].dtype == value.dtype, name
        error = relative_error(got[name], value)
        assert error <= tolerance, f"{name}: {error}"


def assert_matches_naive(
    call: Call, hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> dict[str, Tensor]:
    """chunked against naive; returns what chunked gave."""
    got = outcome(call, hidden, weight, bias, **options)
    assert_same(got, outcome(call, hidden, weight, bias, implementation="naive", **options))
    return got
