"""Any small problem for the ops, as hypothesis draws it, and what an op makes of some of its rows.

The numbers come from a seed; shapes, dtype, layout in memory and settings are drawn, so that what
fails shrinks to the plainest setting that still does.

Legend: R positions, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pact_kernels as pk
from tests.ops.precision import near_a_jump

OPS = (
    "linear_cross_entropy",
    "linear_logsumexp",
    "selected_logits",
    "selected_confidences",
    "pact_kl",
    "pact_loss",
)
LOSSES = ("linear_cross_entropy", "pact_kl", "pact_loss")
LAYOUTS = ("contiguous", "columns first", "every second", "one row, expanded")
GATES = (
    None,
    pk.GateConfig(),
    pk.GateConfig(decay_tau=0.0, prefix_length=3, prefix_boost=1.7),
    pk.GateConfig(alpha=-6.0, bias=0.3, top_p=0.55, temperature=0.6, prefix_length=0),
    pk.GateConfig(alpha=1e3, decay_tau=float("inf"), prefix_length=1),  # 0 or 1
)
LEAST_REST = 0.05
"""Below fp64 a rest of the mass that is less is too little for bounds: a difference of 1 and a sum,
its error counts by 1 / rest."""


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Equal values in other strides; of an expanded row only the first is left."""
    if layout == "every second":
        return torch.stack((tensor, tensor + 1), -1).flatten(-2)[..., ::2]
    if layout == "columns first" and tensor.dim() == 2:
        return tensor.T.contiguous().T
    if layout == "one row, expanded" and tensor.shape[0]:
        return tensor[:1].expand(tensor.shape)
    return tensor.contiguous()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of a problem; its tensors follow from them."""

    seed: int
    rows: int
    hidden: int
    vocabulary: int
    selected: int
    ignored: float
    """The chance of a position to be no row."""
    size: float
    """About that of the logits."""
    wanted_dtype: torch.dtype
    layout: str
    """What states, heads and the incoming gradient are in."""
    has_bias: bool
    softcap: float | None
    logit_scale: float
    over: str
    wanted_temperature: float
    wanted_gate: pk.GateConfig | None
    cached: bool
    """The reference comes as logits."""
    weighted: bool
    """The rows have weights."""
    smoothing: float
    z_loss: float

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """In float64, holding what the dtype does."""
        g = torch.Generator().manual_seed(self.seed)
        r, d, v, k = self.rows, self.hidden, self.vocabulary, self.selected

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        states, head = randn(r, d), randn(v, d) * self.size / d**0.5
        if self.layout == "one row, expanded":
            states = states[:1].expand(r, d)
        target = torch.randint(0, v, (r,), generator=g)
        target[torch.rand(r, generator=g) < self.ignored] = -100
        drawn = {
            "hidden": states,
            "weight": head,
            "bias": randn(v),
            "full": states + 0.3 * randn(r, d),
            "post": states + 0.6 * randn(r, d),
            "reference": head + 0.1 * randn(v, d),
            "reference_bias": randn(v),
            "token_weights": randn(k) + 0.5,
            "row_weight": torch.rand(r, generator=g, dtype=torch.float64) + 0.5,
            "incoming": torch.rand(r, generator=g, dtype=torch.float64) + 0.5,
        }
        drawn["token_weights"][int(torch.randint(0, k, (), generator=g))] = 1.0  # one is positive
        rounded = {name: tensor.to(self.wanted_dtype).double() for name, tensor in drawn.items()}
        rounded["target"] = target
        rounded["step"] = torch.randint(0, 12, (r,), generator=g)
        rounded["token_ids"] = torch.randperm(v, generator=g)[:k]
        return rounded

    @cached_property
    def logits(self) -> dict[str, Tensor]:
        """(R, V) float64 logits of the student and of both contexts of the reference."""
        t = self.tensors
        both = {"hidden": ("weight", "bias"), "full": ("reference", "reference_bias")}
        both["post"] = both["full"]
        found = {}
        for name, (head, bias) in both.items():
            z = t[name] @ t[head].T + (t[bias] if self.has_bias else 0.0)
            z = z * self.logit_scale
            cap = self.softcap
            found[name] = z if cap is None else cap * torch.tanh(z / cap)
        return found

    @property
    def largest(self) -> float:
        """The largest logit in magnitude, before the cap: what their rounding is a part of."""
        if self.rows == 0:
            return 0.0
        t = self.tensors
        sums = t["hidden"].abs() @ t["weight"].abs().T
        other = torch.maximum(t["full"].abs(), t["post"].abs()) @ t["reference"].abs().T
        return float(torch.maximum(sums, other).max() * abs(self.logit_scale)) + 3.0

    @cached_property
    def gate(self) -> pk.GateConfig | None:
        """None too where a count hangs on a rounding."""
        gate, ids = self.wanted_gate, self.tensors["token_ids"]
        if gate is None:
            return None
        jumps = [near_a_jump(self.logits[name][:, ids], gate).any() for name in ("hidden", "post")]
        return None if any(jumps) else gate

    @cached_property
    def dtype(self) -> torch.dtype:
        """fp64 instead where fp32 or less would leave the rest of the mass no digits."""
        ids = self.tensors["token_ids"]
        for z in self.logits.values():
            rest = 1 - (z[:, ids] - z.logsumexp(-1, keepdim=True)).exp().sum(-1)
            if bool((rest < LEAST_REST).any()):
                return torch.float64
        return self.wanted_dtype

    @property
    def temperature(self) -> float:
        """1 over the vocabulary."""
        return 1.0 if self.over == "vocabulary" else self.wanted_temperature

    def states(self, dtype: torch.dtype, rows: Tensor) -> pk.ReferenceStates:
        """The reference on some rows."""
        t = self.tensors
        full, post = (
            laid_out(t[name][rows].to(dtype), "columns first") for name in ("full", "post")
        )
        bias = t["reference_bias"].to(dtype) if self.has_bias else None
        return pk.ReferenceStates(
            full, post, laid_out(t["reference"].to(dtype), self.layout_of_heads), bias
        )

    @property
    def layout_of_heads(self) -> str:
        """A head is no expanded row."""
        return "every second" if self.layout == "one row, expanded" else self.layout

    def known(self, dtype: torch.dtype, rows: Tensor) -> pk.ReferenceLogits:
        """The same from a cache."""
        wide = torch.promote_types(dtype, torch.float32)
        ids, parts = self.tensors["token_ids"], []
        for name in ("full", "post"):
            z = self.logits[name][rows]
            parts.append((z[:, ids].to(wide), z.logsumexp(-1).to(wide)))
        (full, full_lse), (post, post_lse) = parts
        return pk.ReferenceLogits(laid_out(full, "columns first"), post, full_lse, post_lse)

    def head_options(self, bias: Tensor | None) -> dict[str, Any]:
        """What all ops take by name."""
        return {"bias": bias, "softcap": self.softcap, "logit_scale": self.logit_scale}

    def call(
        self,
        op: str,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        **more: Any,
    ) -> Any:
        """The op on some rows; a loss by row unless `more` says otherwise."""
        t, dtype, ids = self.tensors, hidden.dtype, self.tensors["token_ids"]
        wide = torch.promote_types(dtype, torch.float32)
        head = self.head_options(bias)
        if op == "linear_logsumexp":
            return pk.linear_logsumexp(hidden, weight, **head)
        if op == "selected_logits":
            return pk.selected_logits(hidden, weight, ids, **head)
        if op == "selected_confidences":
            given = {"over": self.over, "temperature": self.wanted_temperature}
            return pk.selected_confidences(hidden, weight, ids, **given, **head)
        losses = {"reduction": "none", **head, **more}
        smoothing = {"label_smoothing": self.smoothing, "z_loss": self.z_loss}
        if op == "linear_cross_entropy":
            return pk.linear_cross_entropy(hidden, weight, t["target"][rows], **smoothing, **losses)
        reference = losses.pop("reference", None) or (
            self.known(dtype, rows) if self.cached else self.states(dtype, rows)
        )
        kl = {
            "gate": self.gate,
            "over": self.over,
            "temperature": self.temperature,
            "row_weight": t["row_weight"][rows].to(wide) if self.weighted else None,
        }
        tokens = (ids, losses.pop("token_weights", t["token_weights"]).to(wide), t["step"][rows])
        if op == "pact_kl":
            return pk.pact_kl(hidden, weight, *tokens, reference, **{**kl, **losses})
        losses = {**kl, **smoothing, "kl_weight": 1.3, **losses}
        return pk.pact_loss(hidden, weight, t["target"][rows], *tokens, reference, **losses)

    def outcome(
        self,
        op: str,
        implementation: str = "chunked",
        *,
        rows: Tensor | None = None,
        dtype: torch.dtype | None = None,
        mib: float = 64.0,
        bias_shift: float = 0.0,
        **more: Any,
    ) -> dict[str, Tensor]:
        """Values of the op on some rows, and gradients of their sum times each row's own weight."""
        t, dtype = self.tensors, dtype or self.dtype
        rows = torch.arange(self.rows) if rows is None else rows
        hidden = laid_out(t["hidden"][rows].to(dtype, copy=True), self.layout).requires_grad_()
        weight = laid_out(t["weight"].to(dtype, copy=True), self.layout_of_heads)
        weight.requires_grad_()
        leaves = {"by_hidden": hidden, "by_weight": weight}
        bias = None
        if self.has_bias:
            bias = leaves["by_bias"] = (t["bias"] + bias_shift).to(dtype).requires_grad_()
        with pk.implementation(implementation), pk.workspace(mib):
            out = self.call(op, hidden, weight, bias, rows, **more)
            value = out.loss if isinstance(out, pk.PactLoss) else out
            incoming = t["incoming"][rows].to(value.dtype)
            if value.dim() == 0:
                incoming = incoming.new_ones(())
            elif value.dim() == 2:  # the same for all tokens: an expanded gradient, of stride 0
                incoming = incoming[:, None].expand(value.shape)
            elif self.layout != "contiguous":
                incoming = laid_out(incoming, "every second")
            found = torch.autograd.grad(value, list(leaves.values()), incoming)
        extra = {"kl": out.kl, "gate": out.mean_gate} if isinstance(out, pk.PactLoss) else {}
        return {"value": value.detach(), **extra, **dict(zip(leaves, found, strict=True))}

    def scale(self, key: str) -> float:
        """What errors of this result are a part of: nats, or those times the other factor."""
        t, temperature = self.tensors, max(1.0, self.wanted_temperature**2)
        grown = temperature * (1.0 + self.largest)
        if self.rows == 0:
            return grown
        factor = 1.5 * abs(self.logit_scale)
        sizes = {
            "by_hidden": factor * float(t["weight"].abs().max()),
            "by_weight": factor * self.rows * float(t["hidden"].abs().max()),
            "by_bias": factor * self.rows,
        }
        return grown * sizes.get(key, 1.0)


def apart(got: Tensor, expected: Tensor) -> float:
    """Largest difference; equal infinities are none, and a NaN is infinite."""
    if got.shape != expected.shape:
        raise AssertionError(f"shapes {tuple(got.shape)} and {tuple(expected.shape)}")
    if got.numel() == 0:
        return 0.0
    difference = torch.where(got == expected, 0.0, (got.double() - expected.double()).abs())
    return float(difference.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...], **fixed: Any) -> Case:
    """Any case in one of the dtypes; `fixed` settings are not drawn."""
    vocabulary = draw(st.integers(1, 150))  # tiles are of 64 tokens at least
    some = st.integers(1, min(vocabulary, 7))
    case = Case(
        seed=draw(st.integers(0, 2**32 - 1)),
        rows=draw(st.integers(0, 9)),
        hidden=draw(st.integers(1, 9)),
        vocabulary=vocabulary,
        selected=draw(st.one_of(some, some, st.just(vocabulary))),
        ignored=draw(st.sampled_from((0.0, 0.4, 1.0))),
        size=draw(st.sampled_from((0.0, 0.5, 3.0, 20.0))),
        wanted_dtype=draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(LAYOUTS)),
        has_bias=draw(st.booleans()),
        softcap=draw(st.sampled_from((None, 0.5, 30.0, 1e6))),
        logit_scale=draw(st.sampled_from((1.0, -0.7))),
        over=draw(st.sampled_from(("selection", "vocabulary"))),
        wanted_temperature=draw(st.sampled_from((1.0, 2.0, 0.6))),
        wanted_gate=draw(st.sampled_from(GATES)),
        cached=draw(st.booleans()),
        weighted=draw(st.booleans()),
        smoothing=draw(st.sampled_from((0.0, 0.1))),
        z_loss=draw(st.sampled_from((0.0, 1e-3))),
    )
    return replace(case, **fixed)
