"""One registration for operators that turn rows into losses: forward, backward, fakes, autograd.

With `reduce` the forward sums the rows and forms the gradients of the sum beside it, for the
incoming scalar that is likely where the caller knows one; backward scales them to the one that
comes. Without, every row may come back with its own gradient, so
backward runs the rows again. The scheme needs the loss to be a sum over rows, which all ours are.

Legend: R rows or positions, D hidden size, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.common.requests import NeedsGrad
from pact_kernels.dispatch import operator_implementation, workspace_bytes
from pact_kernels.ops._operators.library import register, register_autograd
from pact_kernels.ops._operators.scale_gradient import scale_gradient
from pact_kernels.ops._operators.schema import flat, nested, schema
from pact_kernels.types import Head

LEAVES = ("hidden", "head_weight", "head_bias")
"""The arguments that get gradients, as the schema names them."""


class RowArguments(Protocol):
    """What the arguments of such an operator, a NamedTuple, have in common."""

    @property
    def hidden(self) -> Tensor:
        """(R, D)"""
        ...

    @property
    def head(self) -> Head:
        """(V, D)"""
        ...


class Settings(NamedTuple):
    """What a call adds to its arguments, kept for the backward."""

    assumed_grad_output: Tensor | None
    """() see `reduction.assumed_grad_output`; None is unknown, and taken as 1."""
    needs_grad: list[bool]
    """By `LEAVES`."""
    workspace_bytes: int
    implementation: str


class RowResult(NamedTuple):
    """What the work on the rows returns."""

    rows: tuple[Tensor, ...]
    """(R,) each; the first is the differentiable loss."""
    counts: tuple[Tensor, ...]
    """() int64 each."""
    gradients: tuple[Tensor, Tensor, Tensor]
    """By hidden (R, D), weight (V, D) and bias (V,) of the summed loss; empty if not needed."""


A = TypeVar("A", bound=RowArguments)
Run = Callable[[A, Settings, Tensor | None, NeedsGrad], RowResult]


class RowLossOperator(Generic[A]):
    """`pact_kernels::name` and `pact_kernels::name_backward`.

    Args:
        name: the operator's name.
        arguments: a NamedTuple, see `schema`; `hidden` comes first.
        run: run(arguments, settings, row_grad (R,) or None for 1, needs_grad) -> RowResult.
        num_rows_values, num_counts: lengths of RowResult.rows and .counts.
    """

    def __init__(
        self, name: str, arguments: type[A], run: Run[A], *, num_rows_values: int, num_counts: int
    ) -> None:
        self.arguments, self.run = arguments, run
        self.num_rows_values, self.num_counts = num_rows_values, num_counts
        entries = [*schema(arguments), *schema(Settings)]
        self.names = [entry.name for entry in entries]
        self.is_tensor = [entry.type_name.startswith("Tensor") for entry in entries]
        inputs = ", ".join(map(str, entries))
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

    def __call__(
        self, arguments: A, *, reduce: bool, assumed_grad_output: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Rows' values (summed with `reduce`) and counts."""
        hidden, head = arguments.hidden, arguments.head
        on = torch.is_grad_enabled()
        needs_grad = [
            on and leaf is not None and leaf.requires_grad
            for leaf in (hidden, head.weight, head.bias)
        ]
        gradient_bytes = 4 * head.weight.numel() if needs_grad[1] else 0
        settings = Settings(
            assumed_grad_output,
            needs_grad,
            workspace_bytes(hidden.device, gradient_bytes),
            operator_implementation(hidden),
        )
        assert isinstance(arguments, tuple)
        results = self.forward(*flat(arguments), *flat(settings), reduce)
        return results[: self.num_rows_values + self.num_counts]

    def _nested(self, inputs: tuple[Any, ...]) -> tuple[A, Settings]:
        remaining = iter(inputs)
        return nested(self.arguments, remaining), nested(Settings, remaining)  # type: ignore[type-var]

    def _forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        *given, reduce = inputs
        arguments, settings = self._nested(tuple(given))
        needs_grad = three(settings.needs_grad) if reduce else (False, False, False)
        likely = settings.assumed_grad_output
        row_grad = None if likely is None else likely.expand(arguments.hidden.shape[0])
        rows, counts, gradients = self.run(arguments, settings, row_grad, needs_grad)
        return *((row.sum() for row in rows) if reduce else rows), *counts, *gradients

    def _forward_fake(self, *inputs: Any) -> tuple[Tensor, ...]:
        *given, reduce = inputs
        arguments, settings = self._nested(tuple(given))
        hidden = arguments.hidden
        shape = () if reduce else hidden.shape[:1]
        dtype = accumulator_dtype(hidden.dtype)
        rows = [hidden.new_empty(shape, dtype=dtype) for _ in range(self.num_rows_values)]
        counts = [hidden.new_empty((), dtype=torch.int64) for _ in range(self.num_counts)]
        needs_grad = three(settings.needs_grad) if reduce else (False, False, False)
        return *rows, *counts, *_fake_gradients(arguments, needs_grad)

    def _rows_backward(self, row_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        arguments, settings = self._nested(inputs)
        return self.run(arguments, settings, row_grad, three(settings.needs_grad)).gradients

    def _rows_backward_fake(self, row_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        arguments, settings = self._nested(inputs)
        return _fake_gradients(arguments, three(settings.needs_grad))

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        *given, ctx.reduce = inputs
        arguments, settings = self._nested(tuple(given))
        ctx.needs_grad, ctx.workspace_bytes = settings.needs_grad, settings.workspace_bytes
        leaves = (arguments.hidden, arguments.head.weight, arguments.head.bias)
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        if ctx.reduce:
            ctx.save_for_backward(*output[-3:], settings.assumed_grad_output)
        else:
            kinds = list(zip(given, self.is_tensor, strict=True))
            ctx.save_for_backward(*(value for value, is_tensor in kinds if is_tensor))
            ctx.others = [value for value, is_tensor in kinds if not is_tensor]

    def _inputs(self, ctx: Any) -> list[Any]:
        """What the forward was given."""
        saved, others = iter(ctx.saved_tensors), iter(ctx.others)
        return [next(saved if is_tensor else others) for is_tensor in self.is_tensor]

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
                formed = self.backward(grad, *self._inputs(ctx))
            leaves = zip(LEAVES, ctx.needs_grad, formed, ctx.dtypes, strict=True)
            for name, needs_grad, gradient, dtype in leaves:
                if needs_grad and scale is not None:
                    by_name[name] = scale_gradient(gradient, scale, dtype, ctx.workspace_bytes)
                elif needs_grad:  # autograd copies it if a retained graph still holds it
                    by_name[name] = gradient.to(dtype)
        return *(by_name.get(name) for name in self.names), None


def three(needs_grad: list[bool]) -> NeedsGrad:
    """The list that a schema holds, as the tuple that it is."""
    hidden, weight, bias = needs_grad
    return hidden, weight, bias


def _fake_gradients(arguments: RowArguments, needs_grad: NeedsGrad) -> tuple[Tensor, ...]:
    hidden, weight = arguments.hidden, arguments.head.weight
    dtype = accumulator_dtype(hidden.dtype)
    return (
        hidden.new_empty(hidden.shape if needs_grad[0] else (0,)),
        hidden.new_empty(weight.shape if needs_grad[1] else (0,), dtype=dtype),
        hidden.new_empty(weight.shape[:1] if needs_grad[2] else (0,), dtype=dtype),
    )
