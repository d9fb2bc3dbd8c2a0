"""The KL of a tile of rows in one launch: logits, counts, gate, target, KL and its gradient.

    u, f, p = hidden W_S^T, full_hidden R_S^T, post_hidden R_S^T      (BLOCK_M, BLOCK_N) each, fp32
    c       = sigmoid(alpha (k(u)/K - k(p)/K - bias)) decay(t) boost  `target.gate_value`
    m       = (1 - c) f + c p
    kl, G   = KL of q(m) to the student, d kl / d u                   `target.selection_kl`
    dHidden = (G slope) W_S                                           (BLOCK_M, BLOCK_K) at a time

W_S and R_S are the heads' gathered rows of the K tokens. Every hidden state is read once; W_S and
R_S come from L2. Logits may also be given instead of states: the student's where K is too large for
registers beside a product, the reference's from a cache or a pass over its vocabulary.

Over the vocabulary the student's log-sum-exp comes after, chunk by chunk: `mixed_target` is
launched in this kernel's place, with the same operands, for what is known before.

Flops: 2 N D K per product, four at most; about 300 N K beside them for two counts. Bytes: three
states and dHidden, 8 N D in 16 bits (4 N D with the reference's logits given).

Legend: N rows, D hidden size, D' that of the reference, K selected tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.common.requests import KlRequest
from pact_kernels.kernels._device.arithmetic import log, logit_slope
from pact_kernels.kernels._device.operands import (
    KlOut,
    Matrix,
    MixedTarget,
    ProductTile,
    RowTensors,
    Selected,
)
from pact_kernels.kernels._device.selected_tile import (
    load_rows,
    store_grad_hidden,
    student_and_mixed,
)
from pact_kernels.kernels._device.target import Gate, selection_kl
from pact_kernels.kernels._kernels.mixed_target import mixed_target_kernel
from pact_kernels.kernels._launch.configs import (
    KL_VARIATIONS,
    KlConfig,
    dot_precision,
    kl_config,
    kl_rows_config,
    padded_tokens,
)
from pact_kernels.kernels._launch.operands import matrix, numbers
from pact_kernels.kernels._launch.runtime import Cost, Options, launch, target_of
from pact_kernels.kernels._launch.tuning import tuned
from pact_kernels.types import GateConfig, Head

EVEN_WIDTH = 64
"""Every configuration's step divides it."""


class KlNumbers(NamedTuple):
    """The numbers of a `KlRequest`."""

    temperature: float
    kl_weight: float
    gate: Gate


class KlTile(NamedTuple):
    """What the compiler knows of a launch."""

    student: ProductTile
    reference: ProductTile
    over_vocabulary: bool
    decay: bool
    """decay_tau > 0; else a hard cut."""
    by_product: bool
    """The gradient is by the raw products, else by the logits."""


@triton.jit(do_not_specialize=["num_rows"])
def _pact_kl_kernel(
    student,  # Matrix: states (N, D), or logits (N, K) where its head has no weight
    student_tiles,
    head,  # (K, D)
    head_weight_tiles,
    full,  # Matrix: states (N, D'), or logits (N, K)
    full_tiles,
    post,  # likewise, or None without a gate
    post_tiles,
    reference,  # its head (K, D'), capped and scaled as the student's
    reference_weight_tiles,
    rows,  # RowTensors
    out,  # KlOut
    kl,  # KlNumbers
    num_rows,
    num_tokens,
    TILE: tl.constexpr,  # KlTile
):
    STUDENT: tl.constexpr = TILE.student
    BLOCK_M: tl.constexpr = TILE.student.rows
    BLOCK_N: tl.constexpr = TILE.student.columns
    student = Matrix(student_tiles, student.stride, student.columns)
    if head_weight_tiles is not None:
        weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
        head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    full = Matrix(full_tiles, full.stride, full.columns)
    if post_tiles is not None:
        post = Matrix(post_tiles, post.stride, post.columns)
    if reference_weight_tiles is not None:
        weight = Matrix(reference_weight_tiles, reference.weight.stride, reference.weight.columns)
        reference = Head(weight, reference.bias, reference.softcap, reference.logit_scale)  # type: ignore[arg-type]
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    tokens = tl.arange(0, BLOCK_N)
    is_token = (tokens < num_tokens)[None, :]
    u, mixed, _, gate = student_and_mixed(
        student, head, full, post, reference, rows, kl.gate, first_row, num_rows, num_tokens, TILE
    )
    kept = is_row
    if rows.target is not None:
        target = tl.load(rows.target + row, mask=is_row, other=rows.ignore_index)
        kept = target != rows.ignore_index
    row_weight = load_rows(rows.row_weight, row, num_rows, 1.0)
    weight = tl.load(rows.token_weights + tokens, mask=tokens < num_tokens, other=1.0)
    log_weight = log(tl.maximum(weight.to(tl.float32), 0.0))
    loss, g = selection_kl(u, mixed, log_weight[None, :], is_token, kl.temperature)
    tl.store(out.kl + row, tl.where(kept, loss * row_weight, 0.0), mask=is_row)
    tl.store(out.gate + row, tl.where(kept, gate, 0.0), mask=is_row)
    scale = load_rows(rows.row_grad, row, num_rows, 1.0) * row_weight * kl.kl_weight
    g = tl.where(kept[:, None], g, 0.0)
    if TILE.by_product:
        g = g * logit_slope(u, head)
    if out.gradient is not None:
        at = row.to(tl.int64)[:, None] * num_tokens + tokens[None, :]
        scaled = tl.where(kept[:, None], g * scale[:, None], 0.0)
        tl.store(out.gradient + at, scaled, mask=is_row[:, None] & is_token)
    if out.grad_hidden is not None:
        store_grad_hidden(
            out.grad_hidden,
            head.weight,
            g,
            scale,
            first_row,
            num_rows,
            num_tokens,
            student.columns,
            STUDENT,
        )


def fits_registers(*weights: Tensor) -> bool:
    """Whether logits by these gathered rows (K, D) can be formed beside their KL."""
    return _formed_config(*weights, crowded=False) is not None


def _formed_config(*weights: Tensor, crowded: bool) -> KlConfig | None:
    weight = weights[0]
    even = all(w.shape[1] % EVEN_WIDTH == 0 for w in weights)
    return kl_config(target_of(weight), weight.dtype, weight.shape[0], crowded=crowded, even=even)


def launch_pact_kl(
    student: Selected,
    full: Selected,
    post: Selected | None,
    out: KlOut | MixedTarget,
    *,
    kl: KlRequest,
    rows: RowTensors,
    by_product: bool = False,
) -> None:
    """Fill `out` for all rows of the sources: the KL, or what is known before a log-sum-exp is.

    Args:
        kl: what is asked for; its row tensors are not read, `rows` are.
        by_product: `out.gradient` is by the raw products and carries row_grad; else it is by the
            logits.
    """
    states, num_tokens = student.inputs, kl.token_weights.numel()
    config = kl_rows_config(num_tokens)
    formed = student.head.weight is not None
    if formed:
        weights = [s.head.weight for s in (student, full) if s.head.weight is not None]
        crowded = student.head.softcap is not None
        config = _formed_config(*weights, crowded=crowded) or config

    def run(config: KlConfig) -> None:
        _launch(student, full, post, out, kl=kl, rows=rows, by_product=by_product, config=config)

    if formed:
        reference = full.head.weight is None, post is None
        key = ("pact_kl", type(out).__name__, *states.shape, num_tokens, kl.over, *reference)
        config = tuned(key, config, KL_VARIATIONS, run, states)
    run(config)


def _launch(
    student: Selected,
    full: Selected,
    post: Selected | None,
    out: KlOut | MixedTarget,
    *,
    kl: KlRequest,
    rows: RowTensors,
    by_product: bool,
    config: KlConfig,
) -> None:
    """The launch itself."""
    num_rows, num_tokens = student.inputs.shape[0], kl.token_weights.numel()
    tokens = padded_tokens(num_tokens)
    gate = kl.gate or GateConfig()
    block, weight_block = [config.rows, config.width], [tokens, config.width]
    contexts = [full] if post is None else [full, post]
    references = [_inputs(source, block) for source in contexts]
    if not all(inputs.has_descriptor for inputs in references):
        # Both contexts by one way: one is a switch of the kernel.
        references = [matrix(source.inputs) for source in contexts]
    states, head = _inputs(student, block), _head(student, weight_block)
    reference = _head(full, weight_block)

    def tile(inputs: Matrix, head: Head) -> ProductTile:
        return ProductTile(
            rows=config.rows,
            columns=tokens,
            width=config.width,
            even_width=inputs.columns % config.width == 0,
            left_descriptor=inputs.has_descriptor,
            right_descriptor=isinstance(head.weight, Matrix) and head.weight.has_descriptor,
            precision=dot_precision(student.inputs),
        )

    kernel = mixed_target_kernel if isinstance(out, MixedTarget) else _pact_kl_kernel
    operand: Any = out
    if isinstance(out, KlOut) and out.grad_hidden is not None:
        operand = out._replace(grad_hidden=matrix(out.grad_hidden))
    launch(
        kernel,
        (ceil_div(num_rows, config.rows),),
        Options(config.warps, config.stages),
        _cost(student, full, post, out, num_tokens, config.rows),
        student=states,
        head=head,
        full=references[0],
        post=None if post is None else references[1],
        reference=reference,
        rows=rows,
        out=operand,
        kl=KlNumbers(float(kl.temperature), float(kl.kl_weight), _gate_numbers(gate)),
        num_rows=num_rows,
        num_tokens=num_tokens,
        TILE=KlTile(
            student=tile(states, head),
            reference=tile(references[0], reference),
            over_vocabulary=kl.over == "vocabulary",
            decay=gate.decay_tau > 0,
            by_product=by_product,
        ),
    )


def _inputs(source: Selected, block: list[int]) -> Matrix:
    """States or logits; logits are read without a descriptor."""
    return matrix(source.inputs, None if source.head.weight is None else block)


def _head(source: Selected, block: list[int]) -> Head:
    """The head with a matrix for its weight, where it has one."""
    head: Head = numbers(source.head)
    if head.weight is None:
        return head
    weight: Any = matrix(head.weight, block)
    return head._replace(weight=weight)


def _gate_numbers(gate: GateConfig) -> Gate:
    return Gate(
        top_p=float(gate.top_p),
        alpha=float(gate.alpha),
        bias=float(gate.bias),
        temperature=float(gate.temperature),
        prefix_length=gate.prefix_length,
        decay_tau=float(gate.decay_tau),
        prefix_boost=float(gate.prefix_boost),
    )


def _cost(
    student: Selected,
    full: Selected,
    post: Selected | None,
    out: KlOut | MixedTarget,
    num_tokens: int,
    rows: int,
) -> Cost:
    """Products of the sources that are states, and one read or write of everything."""
    num_rows = student.inputs.shape[0]
    sources = [source for source in (student, full, post) if source is not None]
    widths = [source.inputs.shape[1] for source in sources if source.head.weight is not None]
    if isinstance(out, KlOut) and out.grad_hidden is not None:
        widths.append(out.grad_hidden.shape[1])
    read = sum(source.inputs.nbytes for source in sources)
    written = sum(tensor.nbytes for tensor in out if tensor is not None)
    return Cost(
        flops=2 * num_rows * num_tokens * sum(widths),
        bytes=read + written,
        row_tiles=ceil_div(num_rows, rows),
    )
