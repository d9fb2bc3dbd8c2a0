"""Time of the head part of a training step, forward and backward: ours against the released one.

    python -m benchmarks.head

All sides start from the student's hidden states and end with the gradient by them; the head is
frozen. The references are hidden states too or, where it says cached, values formed before. The
released objective is checked to give the same loss and gradient on both sides; then all run
alternately. Figures are medians in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import pact_kernels as pk
from benchmarks.released import Batch, released_loss


def make_batch(sequences: int, length: int, hidden: int, vocabulary: int, tokens: int) -> Batch:
    """Sequences whose second half is the answer, with random states; logits of a few units."""
    g = torch.Generator().manual_seed(0)
    answer = length // 2

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    weight = randn(vocabulary, hidden) * 2 / hidden**0.5
    target = torch.randint(0, vocabulary, (sequences, length), generator=g)
    target[:, : length - answer] = -100
    return Batch(
        hidden=randn(sequences, length, hidden),
        weight=weight,
        target=target,
        reference_full=randn(sequences, length, hidden),
        reference_post=randn(sequences, answer, hidden),
        reference_weight=weight,
        post_rows=torch.arange(sequences * answer),
        step=torch.arange(answer).repeat(sequences),
        token_ids=torch.randperm(vocabulary, generator=g)[:tokens].sort().values,
        token_weights=randn(tokens),
    )


def reference_states(batch: Batch) -> pk.ReferenceStates:
    """Both references' states of the answer rows."""
    width = batch.hidden.shape[-1]
    post = batch.reference_post.reshape(-1, width)[batch.post_rows]
    return pk.ReferenceStates(
        batch.reference_full[batch.target != -100], post, batch.reference_weight
    )


def cached_logits(batch: Batch) -> pk.ReferenceLogits:
    """What a cache of the reference holds for these rows: K logits and a log-sum-exp each."""
    full, post, weight, _ = reference_states(batch)
    assert post is not None
    return pk.ReferenceLogits(
        pk.selected_logits(full, weight, batch.token_ids),
        pk.selected_logits(post, weight, batch.token_ids),
        pk.linear_logsumexp(full, weight),
        pk.linear_logsumexp(post, weight),
    )


def fused_loss(
    batch: Batch, over: str, gate: pk.GateConfig | None, cached: pk.ReferenceLogits | None
) -> torch.Tensor:
    """The same from the package: answer rows alone, K columns of the references."""
    return pk.pact_loss(
        batch.hidden,
        batch.weight,
        batch.target,
        batch.token_ids,
        batch.token_weights,
        batch.step,
        reference_states(batch) if cached is None else cached,
        over=over,
        gate=gate,
    ).loss


def loss_and_gradient(
    batch: Batch, loss: Callable[[Batch], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """() and (B, L, D)."""
    hidden = batch.hidden.clone().requires_grad_()
    value = loss(batch._replace(hidden=hidden))
    value.backward()
    assert hidden.grad is not None
    return value.detach(), hidden.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    batch = make_batch(args.sequences, args.length, args.hidden, args.vocabulary, args.tokens)
    gate, cached = pk.GateConfig(), cached_logits(batch)
    sides: dict[str, Callable[[Batch], torch.Tensor]] = {
        "released algorithm": lambda b: released_loss(b, gate),
        "selection, from states": lambda b: fused_loss(b, "selection", gate, None),
        "selection, cached": lambda b: fused_loss(b, "selection", gate, cached),
        "vocabulary, from states": lambda b: fused_loss(b, "vocabulary", gate, None),
        "vocabulary, cached": lambda b: fused_loss(b, "vocabulary", gate, cached),
    }
    (loss_a, grad_a), (loss_b, grad_b) = (
        loss_and_gradient(batch, sides[name]) for name in list(sides)[:2]
    )
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-3, atol=1e-6)
    times_ms: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(args.runs + 1):
        for name, loss in sides.items():
            start_s = time.perf_counter()
            loss_and_gradient(batch, loss)
            if run:  # the first warms up
                times_ms[name].append(1e3 * (time.perf_counter() - start_s))
    medians_ms = {name: statistics.median(values) for name, values in times_ms.items()}
    base_ms = medians_ms["released algorithm"]
    rows = int((batch.target != -100).sum())
    print(
        f"{rows} answer rows of {batch.target.numel()}, D {args.hidden}, V {args.vocabulary}, "
        f"K {args.tokens}, fp32, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name, median_ms in medians_ms.items():
        print(f"{name:24s} {median_ms:9.1f} ms   {median_ms / base_ms:6.3f} of released")


if __name__ == "__main__":
    main()
