"""The device functions of `kernels.target`, each in a kernel of its own, called on whole tensors.

One program holds every row. What it reads past the K tokens is `PAD`: a padded entry may hold any
finite value and counts nowhere.

Legend: N rows, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

import pact_kernels as pk
from pact_kernels.kernels._device import target
from pact_kernels.kernels._launch.configs import padded_tokens
from pact_kernels.kernels._launch.runtime import Cost, Options, launch

PAD = tl.constexpr(1e4)


@triton.jit
def _load(pointer, num_rows, num_tokens, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    rows, tokens = tl.arange(0, ROWS)[:, None], tl.arange(0, TOKENS)[None, :]
    mask = (rows < num_rows) & (tokens < num_tokens)
    return tl.load(pointer + rows * num_tokens + tokens, mask=mask, other=PAD)


@triton.jit
def _store(pointer, tile, num_rows, num_tokens, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    rows, tokens = tl.arange(0, ROWS)[:, None], tl.arange(0, TOKENS)[None, :]
    mask = (rows < num_rows) & (tokens < num_tokens)
    tl.store(pointer + rows * num_tokens + tokens, tile, mask=mask)


@triton.jit
def _top_p_count_kernel(
    logits_ptr,  # (N, K) fp32
    count_ptr,  # (N,) int32
    num_rows,
    num_tokens,
    top_p,
    temperature,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    rows, is_token = tl.arange(0, ROWS), (tl.arange(0, TOKENS) < num_tokens)[None, :]
    x = _load(logits_ptr, num_rows, num_tokens, ROWS, TOKENS)
    count = target.top_p_count(x, is_token, num_tokens, top_p, temperature)
    tl.store(count_ptr + rows, count, mask=rows < num_rows)


@triton.jit
def _gate_value_kernel(
    student_ptr,  # (N, K) fp32
    post_ptr,  # (N, K) fp32
    step_ptr,  # (N,) int
    gate_ptr,  # (N,) fp32
    num_rows,
    num_tokens,
    gate,  # Gate
    DECAY: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    rows, is_token = tl.arange(0, ROWS), (tl.arange(0, TOKENS) < num_tokens)[None, :]
    student = _load(student_ptr, num_rows, num_tokens, ROWS, TOKENS)
    post = _load(post_ptr, num_rows, num_tokens, ROWS, TOKENS)
    step = tl.load(step_ptr + rows, mask=rows < num_rows, other=0)
    c = target.gate_value(student, post, step, is_token, num_tokens, gate, DECAY)
    tl.store(gate_ptr + rows, c, mask=rows < num_rows)


@triton.jit
def _selection_kl_kernel(
    student_ptr,  # (N, K) fp32
    mixed_ptr,  # (N, K) fp32
    log_weight_ptr,  # (K,) fp32
    kl_ptr,  # (N,) fp32
    gradient_ptr,  # (N, K) fp32
    num_rows,
    num_tokens,
    temperature,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    rows, tokens = tl.arange(0, ROWS), tl.arange(0, TOKENS)
    is_token = (tokens < num_tokens)[None, :]
    student = _load(student_ptr, num_rows, num_tokens, ROWS, TOKENS)
    mixed = _load(mixed_ptr, num_rows, num_tokens, ROWS, TOKENS)
    log_weight = tl.load(log_weight_ptr + tokens, mask=tokens < num_tokens, other=PAD)[None, :]
    kl, gradient = target.selection_kl(student, mixed, log_weight, is_token, temperature)
    tl.store(kl_ptr + rows, kl, mask=rows < num_rows)
    _store(gradient_ptr, gradient, num_rows, num_tokens, ROWS, TOKENS)


@triton.jit
def _vocabulary_kl_kernel(
    student_ptr,  # (N, K) fp32 log-confidences
    mixed_ptr,  # (N, K) fp32 likewise, of one reference
    kl_ptr,  # (N,) fp32
    softmax_factor_ptr,  # (N,) fp32
    sparse_ptr,  # (N, K) fp32
    num_rows,
    num_tokens,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    rows, is_token = tl.arange(0, ROWS), (tl.arange(0, TOKENS) < num_tokens)[None, :]
    student = _load(student_ptr, num_rows, num_tokens, ROWS, TOKENS)
    mixed = _load(mixed_ptr, num_rows, num_tokens, ROWS, TOKENS)
    mixed_rest = target.log_rest(mixed, is_token)
    kl, softmax_factor, sparse = target.vocabulary_kl(student, mixed, mixed_rest, is_token)
    tl.store(kl_ptr + rows, kl, mask=rows < num_rows)
    tl.store(softmax_factor_ptr + rows, softmax_factor, mask=rows < num_rows)
    _store(sparse_ptr, sparse, num_rows, num_tokens, ROWS, TOKENS)


def top_p_count(logits: Tensor, top_p: float, temperature: float) -> Tensor:
    """(N, K) -> (N,) int32."""
    count = torch.full(logits.shape[:1], -1, dtype=torch.int32)
    _launch(
        _top_p_count_kernel,
        logits,
        logits_ptr=logits.float(),
        count_ptr=count,
        top_p=top_p,
        temperature=temperature,
    )
    return count


def gate_value(student: Tensor, post: Tensor, step: Tensor, gate: pk.GateConfig) -> Tensor:
    """(N, K), (N, K), (N,) -> (N,) fp32."""
    out = torch.full(step.shape, torch.nan)
    _launch(
        _gate_value_kernel,
        student,
        student_ptr=student.float(),
        post_ptr=post.float(),
        step_ptr=step,
        gate_ptr=out,
        gate=target.Gate(*(getattr(gate, name) for name in target.Gate._fields)),
        DECAY=gate.decay_tau > 0,
    )
    return out


def selection_kl(
    student: Tensor, mixed: Tensor, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(N, K), (N, K), (K,) -> KL (N,) and its gradient (N, K), fp32."""
    kl, gradient = torch.full(student.shape[:1], torch.nan), torch.full(student.shape, torch.nan)
    _launch(
        _selection_kl_kernel,
        student,
        student_ptr=student.float(),
        mixed_ptr=mixed.float(),
        log_weight_ptr=weights.float().clamp(min=0.0).log(),
        kl_ptr=kl,
        gradient_ptr=gradient,
        temperature=temperature,
    )
    return kl, gradient


def vocabulary_kl(student: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K) log-confidences of each -> KL and its factor (N,), sparse entries (N, K), fp32."""
    kl, softmax_factor = torch.full((2, *student.shape[:1]), torch.nan)
    sparse = torch.full(student.shape, torch.nan)
    _launch(
        _vocabulary_kl_kernel,
        student,
        student_ptr=student.float(),
        mixed_ptr=reference.float(),
        kl_ptr=kl,
        softmax_factor_ptr=softmax_factor,
        sparse_ptr=sparse,
    )
    return kl, softmax_factor, sparse


def _launch(kernel: Any, logits: Tensor, **arguments: Any) -> None:
    num_rows, num_tokens = logits.shape
    launch(
        kernel,
        (1,),
        Options(warps=4, stages=1),
        Cost(flops=0, bytes=0),
        **arguments,
        num_rows=num_rows,
        num_tokens=num_tokens,
        ROWS=triton.next_power_of_2(num_rows),
        TOKENS=padded_tokens(num_tokens),
    )
