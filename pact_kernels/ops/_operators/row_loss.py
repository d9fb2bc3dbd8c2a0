"""One registration for operators that turn rows into losses: forward, backward, fakes, autograd.

A reduced loss comes with its gradients, formed in the forward for an incoming gradient of 1 (in
fp16, where a mean's gradient may underflow, for one of the mean's denominator); backward scales
them to the one that comes. Unreduced, every row may come back with its own gradient, so backward
runs the rows again. The scheme needs the loss to be a sum over rows, which all ours are.

Legend: R rows or positions, D hidden size, V rows of the head, n reports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.common.reduction import Reduction, divided
from pact_kernels.common.requests import NeedsGrad
from pact_kernels.dispatch import operator_implementation, workspace_bytes
from pact_kernels.ops._operators.library import register, register_autograd
from pact_kernels.ops._operators.scale_gradient import scaled_gradients
from pact_kernels.ops._operators.schema import flat, nested, schema, width
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

    reduction: Reduction
    needs_grad: list[bool]
    """By `LEAVES`."""
    workspace_bytes: int
    implementation: str


class RowResult(NamedTuple):
    """What the work on the rows returns."""

    loss: Tensor
    """(R,), or () reduced; differentiable."""
    reports: Tensor
    """(n, R), or (n,) reduced; not differentiable."""
    num_rows: Tensor
    """() int64"""
    gradients: tuple[Tensor, Tensor, Tensor]
    """By hidden (R, D), weight (V, D) and bias (V,) of the loss; empty if not needed."""


A = TypeVar("A", bound=RowArguments)
Run = Callable[[A, Settings, Tensor | None, NeedsGrad], RowResult]
Reduce = Callable[[A, Settings, NeedsGrad], RowResult]


class RowLossOperator(Generic[A]):
    """`pact_kernels::name` and `pact_kernels::name_backward`.

    Args:
        name: the operator's name.
        arguments: a NamedTuple, see `schema`; `hidden` comes first.
        run: run(arguments, settings, row_grad (R,) or None for 1, needs_grad) gives the losses of
            the rows and the gradients of their weighted sum.
        reduce: reduce(arguments, settings, needs_grad) gives the reduced loss and the gradients
            of it, or in fp16 of its sum.
        num_reports: n
    """

    def __init__(
        self, name: str, arguments: type[A], run: Run[A], reduce: Reduce[A], *, num_reports: int
    ) -> None:
        self.arguments, self.run, self.reduce = arguments, run, reduce
        self.width = width(arguments)
        self.num_reports = num_reports
        entries = [*schema(arguments), *schema(Settings)]
        self.names = [entry.name for entry in entries]
        self.is_tensor = [entry.type_name.startswith("Tensor") for entry in entries]
        inputs = ", ".join(map(str, entries))
        results = ", ".join(["Tensor"] * 6)
        self.forward = register(
            name, f"({inputs}) -> ({results})", self._forward, self._forward_fake
        )
        self.backward = register(
            f"{name}_backward",
            f"(Tensor row_grad, {inputs}) -> (Tensor, Tensor, Tensor)",
            self._rows_backward,
            self._rows_backward_fake,
        )
        register_autograd(name, self._backward, self._setup_context)

    def __call__(self, arguments: A, reduction: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and reports, by row or reduced, and the number of rows."""
        hidden, head = arguments.hidden, arguments.head
        on = torch.is_grad_enabled()
        needs_grad = [
            on and leaf is not None and leaf.requires_grad
            for leaf in (hidden, head.weight, head.bias)
        ]
        gradient_bytes = 4 * head.weight.numel() if needs_grad[1] else 0
        settings = Settings(
            reduction,
            needs_grad,
            workspace_bytes(hidden.device, gradient_bytes),
            operator_implementation(hidden),
        )
        assert isinstance(arguments, tuple)
        loss, reports, num_rows, *_ = self.forward(*flat(arguments), *flat(settings))
        return loss, reports, num_rows

    def _nested(self, inputs: tuple[Any, ...]) -> tuple[A, Settings]:
        given, added = inputs[: self.width], inputs[self.width :]
        return nested(self.arguments, given), nested(Settings, added)  # type: ignore[type-var]

    def _forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        arguments, settings = self._nested(inputs)
        if settings.reduction.kind == "none":
            result = self.run(arguments, settings, None, (False, False, False))
        else:
            result = self.reduce(arguments, settings, three(settings.needs_grad))
        return result.loss, result.reports, result.num_rows, *result.gradients

    def _forward_fake(self, *inputs: Any) -> tuple[Tensor, ...]:
        arguments, settings = self._nested(inputs)
        hidden = arguments.hidden
        reduced = settings.reduction.kind != "none"
        shape = () if reduced else hidden.shape[:1]
        dtype = accumulator_dtype(hidden.dtype)
        needs_grad = three(settings.needs_grad) if reduced else (False, False, False)
        return (
            hidden.new_empty(shape, dtype=dtype),
            hidden.new_empty((self.num_reports, *shape), dtype=dtype),
            hidden.new_empty((), dtype=torch.int64),
            *_fake_gradients(arguments, needs_grad),
        )

    def _rows_backward(self, row_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        arguments, settings = self._nested(inputs)
        return self.run(arguments, settings, row_grad, three(settings.needs_grad)).gradients

    def _rows_backward_fake(self, row_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        arguments, settings = self._nested(inputs)
        return _fake_gradients(arguments, three(settings.needs_grad))

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        arguments, ctx.settings = self._nested(inputs)
        leaves = (arguments.hidden, arguments.head.weight, arguments.head.bias)
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        if ctx.settings.reduction.kind != "none":
            num_items = ctx.settings.reduction.num_items
            ctx.settings = ctx.settings._replace(
                reduction=ctx.settings.reduction._replace(num_items=None)
            )
            ctx.save_for_backward(*output[2:], num_items)
        else:
            kinds = list(zip(inputs, self.is_tensor, strict=True))
            ctx.save_for_backward(*(value for value, is_tensor in kinds if is_tensor))
            ctx.others = [value for value, is_tensor in kinds if not is_tensor]

    def _inputs(self, ctx: Any) -> list[Any]:
        """What the forward was given."""
        saved, others = iter(ctx.saved_tensors), iter(ctx.others)
        return [next(saved if is_tensor else others) for is_tensor in self.is_tensor]

    def _backward(self, ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        by_name: dict[str, Tensor] = {}
        settings = ctx.settings
        if grad is not None and settings.reduction.kind == "none":
            formed = self.backward(grad, *self._inputs(ctx))
            for name, needs_grad, gradient, dtype in zip(
                LEAVES, settings.needs_grad, formed, ctx.dtypes, strict=True
            ):
                if needs_grad:
                    by_name[name] = gradient.to(dtype)
        elif grad is not None:
            num_rows, *formed, num_items = ctx.saved_tensors
            if ctx.dtypes[0] == torch.float16:
                reduction = settings.reduction._replace(num_items=num_items)
                grad = divided(grad, reduction.denominator(num_rows))
            gradients = scaled_gradients(
                formed,
                grad,
                ctx.dtypes,
                settings.needs_grad,
                implementation=settings.implementation,
                limit_bytes=settings.workspace_bytes,
                keep_graph=torch._C._autograd._get_current_graph_task_keep_graph(),
            )
            by_name = {
                name: gradient
                for name, gradient in zip(LEAVES, gradients, strict=True)
                if gradient is not None
            }
        return (*(by_name.get(name) for name in self.names),)


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
