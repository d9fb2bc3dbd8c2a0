"""Device functions of the KL: top-p counts, gate, mixed target, KL and its gradient by the logits.

Each works on a (BLOCK_M, BLOCK_N) tile in registers, BLOCK_N the K selected tokens padded to a
power of two; `is_token` (1, BLOCK_N) marks the K. A padded entry holds any finite value and counts
nowhere. The formulas are those of `chunked._target`.

Legend: K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from pact_kernels.common import constants
from pact_kernels.kernels._device.arithmetic import exp, log

LEAST_PROBABILITY = tl.constexpr(constants.LEAST_PROBABILITY)
LEAST_REST = tl.constexpr(constants.LEAST_REST)
ONE_BITS = tl.constexpr(0x3F800000)  # of 1.0 in fp32
BISECTIONS = tl.constexpr(30)  # 2^30 > ONE_BITS: enough to single out one bit pattern


class Gate(NamedTuple):
    """The numbers of a `GateConfig`."""

    top_p: float
    alpha: float
    bias: float
    temperature: float
    prefix_length: int
    decay_tau: float
    prefix_boost: float


@triton.jit
def top_p_count(x, is_token, num_tokens, top_p, temperature):
    """(BLOCK_M,) least number of entries of softmax(x / temperature) that reach top_p.

    No sort: with e = exp((x - max) / temperature) in [0, 1], the last entry needed is the largest
    value whose equals and betters sum to top_p of the whole. Positive floats order as their bits
    do, so 30 bisections of the bit pattern find it exactly; equal entries then count singly.
    """
    x = tl.where(is_token, x / temperature, float("-inf"))
    e = exp(x - tl.max(x, 1)[:, None])
    bits = e.to(tl.int32, bitcast=True)
    total = tl.sum(e, 1)
    needed = total * top_p  # (BLOCK_M,)
    low = tl.zeros_like(needed).to(tl.int32)
    high = low + (ONE_BITS + 1)
    for _ in tl.range(0, BISECTIONS):
        middle = (low + high) // 2
        reached = tl.sum(tl.where(bits >= middle[:, None], e, 0.0), 1) >= needed
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    above = bits > low[:, None]
    last = low.to(tl.float32, bitcast=True)
    missing = needed - tl.sum(tl.where(above, e, 0.0), 1)
    equals = tl.maximum(tl.ceil(missing / tl.maximum(last, 1e-38)), 1.0).to(tl.int32)
    count = tl.sum(above.to(tl.int32), 1) + equals
    # Logits of no distribution, all -inf, reach nothing (their total is no number): K of them.
    return tl.where(total > 0.0, tl.minimum(count, num_tokens), num_tokens)


@triton.jit
def gate_value(
    student,  # (BLOCK_M, BLOCK_N) logits
    post,  # (BLOCK_M, BLOCK_N)
    step,  # (BLOCK_M,)
    is_token,
    num_tokens,
    gate,  # Gate
    DECAY: tl.constexpr,  # decay_tau > 0; else a hard cut
):
    """(BLOCK_M,) the gate c."""
    count = top_p_count(student, is_token, num_tokens, gate.top_p, gate.temperature)
    count -= top_p_count(post, is_token, num_tokens, gate.top_p, gate.temperature)
    x = gate.alpha * (count.to(tl.float32) / num_tokens - gate.bias)
    past = (step - gate.prefix_length).to(tl.float32)
    if DECAY:
        decay = exp(-tl.maximum(past, 0.0) / gate.decay_tau)
    else:
        decay = tl.where(past < 0.0, 1.0, 0.0)
    return decay * gate.prefix_boost / (1.0 + exp(-x))


@triton.jit
def mix(full, post, gate):
    """(1 - c) full + c post; -inf where either is, unless c leaves it out (0 times anything is 0).

    `gate` broadcasts to the references.
    """
    mixed = tl.where(full == float("-inf"), full, full + gate * (post - full))
    return tl.where(gate == 0.0, full, tl.where(gate == 1.0, post, mixed))


@triton.jit
def selection_kl(student, mixed, log_weight, is_token, temperature):
    """KL over the K tokens (BLOCK_M,) and its gradient T (softmax(u / T) - q) (BLOCK_M, BLOCK_N).

    q = softmax(m / T + log w), with `log_weight` -inf where a weight is not positive.
    """
    u = tl.where(is_token, student / temperature, float("-inf"))
    u -= tl.max(u, 1)[:, None]
    log_p = u - log(tl.sum(exp(u), 1))[:, None]
    m = tl.where(is_token, mixed / temperature + log_weight, float("-inf"))
    q = exp(m - tl.max(m, 1)[:, None])
    q = q / tl.sum(q, 1)[:, None]
    terms = q * (log(tl.maximum(q, LEAST_PROBABILITY)) - log_p)
    kl = temperature * temperature * tl.sum(tl.where(q == 0.0, 0.0, terms), 1)
    return kl, tl.where(is_token, temperature * (exp(log_p) - q), 0.0)


@triton.jit
def log_rest(log_confidence, is_token):
    """(BLOCK_M,) log of the mass beside the K tokens, at least LEAST_REST."""
    rest = 1.0 - tl.sum(tl.where(is_token, exp(log_confidence), 0.0), 1)
    return log(tl.maximum(rest, LEAST_REST))


@triton.jit
def vocabulary_kl(
    student,  # (BLOCK_M, BLOCK_N) log-confidences
    mixed,  # (BLOCK_M, BLOCK_N) the references' log-confidences mixed by the gate
    mixed_rest,  # (BLOCK_M,) their log-rests mixed likewise
    is_token,
):
    """KL of the K + 1 classes, the softmax's factor in its gradient, and the K sparse entries.

    The classes are normalised: where the rest is clamped they would sum to Z, more than 1.
    d kl / d z_v is softmax_factor * P_v, plus the sparse entry on a selected v. The sparse entries
    are r P_v - q_v with r = q_rest / P_rest, or 1 / Z where the rest is clamped, and the factor is
    minus their sum: 1 - r where nothing is clamped, but with more digits.
    """
    mass = tl.where(is_token, exp(student), 0.0)
    selected = tl.sum(mass, 1)
    least = tl.maximum(1.0 - selected, LEAST_REST)
    clamped = 1.0 - selected <= LEAST_REST
    all_classes = tl.where(clamped, selected + least, 1.0)  # Z
    m = tl.where(is_token, mixed, float("-inf"))
    row_max = tl.maximum(tl.max(m, 1), mixed_rest)  # (BLOCK_M,)
    sum_exp = tl.sum(exp(m - row_max[:, None]), 1) + exp(mixed_rest - row_max)
    shift = row_max + log(sum_exp)
    q = exp(m - shift[:, None])
    q_rest = exp(mixed_rest - shift)
    terms = tl.where(q == 0.0, 0.0, q * (m - shift[:, None] - student))
    kl = tl.sum(terms, 1) + q_rest * (mixed_rest - shift - log(least)) + log(all_classes)
    ratio = tl.where(clamped, 1.0, q_rest) / tl.where(clamped, all_classes, least)
    sparse = ratio[:, None] * mass - q  # q is 0 past the last token
    return kl, -tl.sum(sparse, 1), sparse
