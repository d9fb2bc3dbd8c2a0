"""One registration for operators that turn rows into losses: forward, backward, fakes, autograd.

With `reduce` the forward sums the rows and forms the gradients of the sum beside it, for the
incoming scalar that is likely where the caller knows one; backward scales them to the one that
comes. Without, every row may come back with its own gradient, so
backward runs the rows again. The scheme needs the loss to be a sum over rows, which all ours are.

Legend: R rows or positions, D hidden size, V rows of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.common.requests import NeedsGrad
from pact_kernels.dispatch import operator_implementation, workspace_bytes
from pact_kernels.ops._operators.library import register, register_autograd
from pact_kernels.ops._operators.scale_gradient import scale_gradient

SETTINGS = ("int workspace_bytes", "str implementation")
"""What the caller's context managers say, kept for the backward."""


class RowResult(NamedTuple):
    """What the work on the rows returns."""

    rows: tuple[Tensor, ...]
    """(R,) each; the first is the differentiable loss."""
    counts: tuple[Tensor, ...]
    """() int64 each."""
    gradients: tuple[Tensor, Tensor, Tensor]
    """By hidden (R, D), weight (V, D) and bias (V,) of the summed loss; empty if not needed."""


Run = Callable[[dict[str, Any], Tensor | None, NeedsGrad], RowResult]


class RowLossOperator:
    """`pact_kernels::name` and `pact_kernels::name_backward`.

    Args:
        name: the operator's name.
        arguments: schema entries "type name"; the tensors come first, hidden before all.
        differentiable: names of hidden, weight and bias among them.
        run: run(arguments by name, row_grad (R,) or None for 1, needs_grad) -> RowResult.
        num_rows_values, num_counts: lengths of RowResult.rows and .counts.
    """

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        differentiable: tuple[str, str, str],
        run: Run,
        *,
        num_rows_values: int,
        num_counts: int,
    ) -> None:
        tensors = [argument for argument in arguments if argument.startswith("Tensor")]
        others = arguments[len(tensors) :]
        tensors.append("Tensor? assumed_grad_output")  # () see ops/reduce.py; None: unknown, as 1
        arguments = (*tensors, *others, "bool[] needs_grad", *SETTINGS)
        self.names = tuple(argument.split()[1] for argument in arguments)
        self.num_tensors = len(tensors)
        self.differentiable, self.run = differentiable, run
        self.num_rows_values, self.num_counts = num_rows_values, num_counts
        inputs = ", ".join(arguments)
        results = ", ".join(["Tensor"] * (num_rows_values + num_counts + 3))
        self.forward = register(
            name, f"({inputs}, bool reduce) -> ({results})", self._forward, self._forward_fake
        )
        self.backward = register(
            f"{name}_backward",
            f"(Tensor row_grad, {inputs}) -> (Tensor, Tensor, Tensor)",
            self._rows_backward,
            self._rows_backward_fake,
        )
        register_autograd(name, self._backward, self._setup_context)

    def __call__(self, reduce: bool, **arguments: Any) -> tuple[Tensor, ...]:
        """Rows' values (summed with `reduce`) and counts; an argument left out is None."""
        on = torch.is_grad_enabled()
        leaves = [arguments.get(name) for name in self.differentiable]
        arguments["needs_grad"] = [
            on and leaf is not None and leaf.requires_grad for leaf in leaves
        ]
        arguments["workspace_bytes"] = workspace_bytes(arguments["hidden"].device)
        arguments["implementation"] = operator_implementation(arguments["hidden"])
        results = self.forward(*(arguments.get(name) for name in self.names), reduce)
        return results[: self.num_rows_values + self.num_counts]

    def _by_name(self, inputs: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.names, inputs, strict=True))

    def _forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        *rest, reduce = inputs
        arguments = self._by_name(tuple(rest))
        needs_grad = tuple(arguments["needs_grad"]) if reduce else (False, False, False)
        likely = arguments["assumed_grad_output"]
        row_grad = None if likely is None else likely.expand(arguments["hidden"].shape[0])
        rows, counts, gradients = self.run(arguments, row_grad, needs_grad)
        return *((row.sum() for row in rows) if reduce else rows), *counts, *gradients

    def _forward_fake(self, *inputs: Any) -> tuple[Tensor, ...]:
        *rest, reduce = inputs
        arguments = self._by_name(tuple(rest))
        hidden = arguments["hidden"]
        shape = () if reduce else hidden.shape[:1]
        dtype = accumulator_dtype(hidden.dtype)
        rows = [hidden.new_empty(shape, dtype=dtype) for _ in range(self.num_rows_values)]
        counts = [hidden.new_empty((), dtype=torch.int64) for _ in range(self.num_counts)]
        needs_grad = arguments["needs_grad"] if reduce else (False, False, False)
        return *rows, *counts, *self._fake_gradients(arguments, needs_grad)

    def _rows_backward(self, row_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        arguments = self._by_name(inputs)
        return self.run(arguments, row_grad, tuple(arguments["needs_grad"])).gradients

    def _rows_backward_fake(self, row_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        arguments = self._by_name(inputs)
        return self._fake_gradients(arguments, arguments["needs_grad"])

    def _fake_gradients(
        self, arguments: dict[str, Any], needs_grad: list[bool] | NeedsGrad
    ) -> tuple[Tensor, ...]:
        hidden, weight = (arguments[name] for name in self.differentiable[:2])
        dtype = accumulator_dtype(hidden.dtype)
        return (
            hidden.new_empty(hidden.shape if needs_grad[0] else (0,)),
            hidden.new_empty(weight.shape if needs_grad[1] else (0,), dtype=dtype),
            hidden.new_empty(weight.shape[:1] if needs_grad[2] else (0,), dtype=dtype),
        )

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        *rest, ctx.reduce = inputs
        arguments = self._by_name(tuple(rest))
        ctx.needs_grad, ctx.workspace_bytes = arguments["needs_grad"], arguments["workspace_bytes"]
        leaves = [arguments[name] for name in self.differentiable]
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        if ctx.reduce:
            ctx.save_for_backward(*output[-3:], arguments["assumed_grad_output"])
        else:
            ctx.save_for_backward(*rest[: self.num_tensors])
            ctx.others = tuple(rest[self.num_tensors :])

    def _backward(self, ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        by_name: dict[str, Tensor] = {}
        if grad is not None:
            scale: Tensor | None = None
            if ctx.reduce:
                *formed, likely = ctx.saved_tensors
                scale = grad if likely is None else grad / likely
                # A tensor of another type is being traced, and has no value to look at.
                if likely is not None and type(scale) is Tensor and bool(scale == 1):
                    scale = None
            else:
                formed = self.backward(grad, *ctx.saved_tensors, *ctx.others)
            leaves = zip(self.differentiable, ctx.needs_grad, formed, ctx.dtypes, strict=True)
            for name, needs_grad, gradient, dtype in leaves:
                if needs_grad and scale is not None:
                    by_name[name] = scale_gradient(gradient, scale, dtype, ctx.workspace_bytes)
                elif needs_grad:  # autograd copies it if a retained graph still holds it
                    by_name[name] = gradient.to(dtype)
        return *(by_name.get(name) for name in self.names), None
