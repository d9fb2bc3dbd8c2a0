"""A cached reference is the live one: its logits, the loss and the gradient that follow."""

from __future__ import annotations

import pytest
import torch

import pact_kernels as pk
from pact.data.packing import PackedCollator
from pact.data.spans import IGNORE, answer_rows
from pact.models import hidden_states, output_head
from pact.reference import CachedReference, FrozenModel, fill_cache
from pact.reference.columns import read_columns
from tests.reference.problem import COUNT, THREE_TURNS, WITHOUT_ROWS, problem
from tests.rounding import SUMS
from tests.tiny import tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS

EVERY = tuple(range(COUNT))
# Out of order, a row-free example between others, and the three turns.
SOME = (7, WITHOUT_ROWS, 0, THREE_TURNS)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("pact.reference.shards.SHARD_EXAMPLES", 4)


def live_logits(model, input_ids, mask, sequence, position):
    """(N, K) selected logits and (N,) log-sum-exp, from the model's own full logits."""
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask).logits[sequence, position]
    return logits[:, TOKEN_IDS], logits.logsumexp(-1)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_cached_logits_are_the_live_ones_up_to_their_shift(tmp_path, over, gate, dtype):
    p = problem(over, gate)
    model = tiny_llama(seed=1)
    # 150 positions cut a shard into several batches; the batch that asks is another one.
    cache = p.fill(FrozenModel(model), tmp_path, dtype=dtype, max_tokens=150)
    batch = p.batch(*SOME)
    got = CachedReference(cache)(batch)
    places = [("full", "input_ids", "attention_mask", "row")]
    if gate:
        places.append(("post", "post_input_ids", "post_attention_mask", "post"))
    for context, ids, mask, kind in places:
        sequence, position = batch[f"{kind}_sequence"], batch[f"{kind}_position"]
        logits, lse = live_logits(model, batch[ids], batch[mask], sequence, position)
        shift = lse if over == "vocabulary" else logits.max(-1).values
        want = logits - shift[:, None]
        # fp16 rounds by half a unit in the last of its 11 digits.
        relative, absolute = (2**-11, 2e-6) if dtype == "fp16" else (0.0, 1e-5)
        value = getattr(got, context)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, want, rtol=relative, atol=absolute)
        kept_lse = getattr(got, f"{context}_lse")
        assert (kept_lse is not None) == (over == "vocabulary")
        if kept_lse is not None:
            assert not kept_lse.any()
    assert gate or (got.post is None and got.post_lse is None)


def loss_and_gradient(p, reference, batch):
    """The loss of a student, and its gradient by the student's states and head."""
    student = tiny_llama(seed=2)
    states = hidden_states(student, batch["input_ids"], batch["attention_mask"])
    hidden = states[batch["row_sequence"], batch["row_position"]]
    held_to = reference(batch)
    target, step = batch["row_target"], batch["row_step"]
    loss = p.objective(hidden, output_head(student), target, step, held_to)
    loss.loss.backward()
    return loss, {name: value.grad for name, value in student.named_parameters()}


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_loss_and_gradient_are_those_of_the_live_reference(tmp_path, over, gate):
    p = problem(over, gate)
    live = FrozenModel(tiny_llama(seed=1))
    cached = CachedReference(p.fill(live, tmp_path, dtype="fp32"))
    batch = p.batch(*SOME)
    ours, gradient = loss_and_gradient(p, cached, batch)
    theirs, expected = loss_and_gradient(p, live, batch)
    assert ours.kl > 1e-3  # there is something to agree on
    for value, other in ((ours.loss, theirs.loss), (ours.kl, theirs.kl)):
        torch.testing.assert_close(value, other, rtol=SUMS, atol=0)
    for name, value in expected.items():
        error = (gradient[name] - value).norm() / value.norm()
        assert error < SUMS, name


def test_the_recommended_objective_on_a_cache_is_the_live_one(tmp_path):
    """With a margin, on the tokens of positive weight alone, which are all that is kept."""
    p = problem("vocabulary", gate=False, kl_margin=1.5, positive_only=True)
    live = FrozenModel(tiny_llama(seed=1))
    cached = CachedReference(p.fill(live, tmp_path, dtype="fp32"))
    batch = p.batch(*SOME)
    kept = TOKEN_WEIGHTS > 0
    assert 0 < kept.sum() < len(kept)
    every = problem("vocabulary", gate=False)
    whole = CachedReference(every.fill(live, tmp_path / "every", dtype="fp32"))(batch).full
    # Logits of a few units, whose product with fewer tokens may be added in another order.
    torch.testing.assert_close(cached(batch).full, whole[:, kept], rtol=0, atol=SUMS)
    ours, gradient = loss_and_gradient(p, cached, batch)
    theirs, expected = loss_and_gradient(p, live, batch)
    torch.testing.assert_close(ours.kl, theirs.kl, rtol=SUMS, atol=0)
    assert abs(theirs.kl - loss_and_gradient(every, live, batch)[0].kl) > 1e-3
    for name, value in expected.items():
        error = (gradient[name] - value).norm() / value.norm()
        assert error < SUMS, name


def test_sixteen_bits_move_the_loss_by_less_than_their_rounding(tmp_path):
    p = problem("vocabulary")
    live = FrozenModel(tiny_llama(seed=1))
    cached = CachedReference(p.fill(live, tmp_path))
    batch = p.batch(*SOME)
    ours, theirs = (loss_and_gradient(p, reference, batch)[0].kl for reference in (cached, live))
    torch.testing.assert_close(ours, theirs, rtol=2**-10, atol=0)


def test_packed_batches_read_and_fill_the_same_rows(tmp_path):
    p = problem()
    live = FrozenModel(tiny_llama(seed=1))
    packed = PackedCollator(p.collator.header_ids, p.collator.pad_token_id, pack_length=300)
    padded_cache = p.fill(live, tmp_path / "padded", dtype="fp32")
    packed_cache = p._replace(collator=packed).fill(live, tmp_path / "packed", dtype="fp32")
    batch = p._replace(collator=packed).batch(*SOME)
    ours, theirs = (CachedReference(cache)(batch) for cache in (packed_cache, padded_cache))
    torch.testing.assert_close(ours.full, theirs.full, rtol=0, atol=SUMS)
    torch.testing.assert_close(ours.post, theirs.post, rtol=0, atol=SUMS)


def test_a_line_holds_all_turns_of_its_example(tmp_path):
    p = problem()
    cache = p.fill(FrozenModel(tiny_llama(seed=1)), tmp_path)
    lines = {line["example"]: line for line in cache.table}
    assert sorted(lines) == list(EVERY)
    assert p.batch(THREE_TURNS)["row_answer"].unique().tolist() == [0, 1, 2]
    assert len(lines[THREE_TURNS]["full"]) == p.batch(THREE_TURNS)["row_step"].numel() * 8  # K
    assert lines[WITHOUT_ROWS]["full"] == lines[WITHOUT_ROWS]["post"] == []


def test_row_counts_are_those_of_the_spans():
    examples = [
        {"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]},
        {"input_ids": [5, 6], "labels": [5, 6]},  # no state predicts the first token
        {"input_ids": [5], "labels": [5]},
        {"input_ids": [5, 6, 7, 8], "labels": [IGNORE, 6, IGNORE, 8]},
        {"input_ids": [5, 6], "labels": [IGNORE, IGNORE]},
    ]
    counts = [answer_rows(torch.tensor([e["labels"]])).step.numel() for e in examples]
    columns = read_columns(examples)
    assert columns.row_counts().tolist() == counts == [2, 1, 0, 2, 0]
    for index, example in enumerate(examples):
        got = columns.example(index)
        assert {name: value.tolist() for name, value in got.items()} == example


def test_columns_follow_a_selection_of_the_data_set():
    dataset = problem().dataset
    columns = read_columns(dataset.select([3, 1]))
    assert columns.input_ids.tolist() == dataset[3]["input_ids"] + dataset[1]["input_ids"]
    assert columns.labels.tolist() == dataset[3]["labels"] + dataset[1]["labels"]


@pytest.mark.parametrize("dtype, size", [("fp16", 2), ("fp32", 4)])
@pytest.mark.parametrize("gate", [True, False])
def test_bytes_per_row_are_those_on_disk(tmp_path, gate, dtype, size):
    cache = problem(gate=gate).fill(FrozenModel(tiny_llama(seed=1)), tmp_path, dtype=dtype)
    contexts = 2 if gate else 1
    assert cache.bytes_per_row == 8 * size * contexts  # K = 8
    kept = sum(cache.read([index]).full.nbytes * contexts for index in EVERY)
    assert kept == cache.num_rows * cache.bytes_per_row
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.arrow"))
    assert kept <= on_disk <= kept + 3 * 4096  # three files: headers, offsets and padding


@pytest.mark.parametrize(
    "indices, message",
    [([3, 4], "cut, filtered or reordered"), ([COUNT, 0], "unknown"), ([-1, 0], "unknown")],
)
def test_a_batch_with_stale_indices_is_refused(tmp_path, indices, message):
    p = problem()
    reference = CachedReference(p.fill(FrozenModel(tiny_llama(seed=1)), tmp_path))
    batch = {**p.batch(0, 1), "example": torch.tensor(indices)}
    with pytest.raises(ValueError, match=message):
        reference(batch)


def test_a_batch_that_names_no_examples_is_refused(tmp_path):
    p = problem()
    reference = CachedReference(p.fill(FrozenModel(tiny_llama(seed=1)), tmp_path))
    with pytest.raises(ValueError, match="column `example`"):
        reference(p.collator([p.dataset[0]]))


def test_a_batch_without_rows_reads_nothing(tmp_path):
    p = problem()
    reference = CachedReference(p.fill(FrozenModel(tiny_llama(seed=1)), tmp_path))
    example = {**p.dataset[0], "labels": [IGNORE] * len(p.dataset[0]["labels"]), "example": 0}
    assert reference(p.collator([example])).full.shape == (0, 8)


def test_reading_copies_none_of_the_files(tmp_path):
    p = problem()
    cache = p.fill(FrozenModel(tiny_llama(seed=1)), tmp_path)
    reference = CachedReference(cache)
    batch = p.batch(*EVERY[:8])
    reference(batch)
    for shards in cache._views.values():
        assert all(not values.flags.owndata and not values.flags.writeable for _, values in shards)


def test_values_under_autocast_are_those_of_the_live_reference(tmp_path):
    p = problem("vocabulary", gate=False)
    live = FrozenModel(tiny_llama(seed=1))
    cached = CachedReference(p.fill(live, tmp_path, dtype="fp32", compute_dtype="bf16"))
    batch = p.batch(5)
    with torch.autocast("cpu", torch.bfloat16):
        states = live(batch)
        head = {"bias": states.bias, "softcap": None, "logit_scale": 1.0}
        logits = pk.selected_logits(states.full_hidden, states.weight, TOKEN_IDS, **head)
        lse = pk.linear_logsumexp(states.full_hidden, states.weight, **head)
    exact = CachedReference(p.fill(live, tmp_path / "exact", dtype="fp32"))(batch).full
    ours = cached(batch).full
    # Batches differ, so bf16 rounds apart; yet nearer than fp32 products come.
    near = (ours - (logits - lse[:, None])).abs().mean()
    assert near < 0.5 * (ours - exact).abs().mean()


def test_an_unknown_dtype_is_refused(tmp_path):
    p = problem()
    with pytest.raises(ValueError, match="'bf16'"):
        p.fill(FrozenModel(tiny_llama(seed=1)), tmp_path, dtype="bf16")


def test_no_data_are_refused(tmp_path):
    p = problem()
    reference = FrozenModel(tiny_llama(seed=1))
    with pytest.raises(ValueError, match="at least one example"):
        fill_cache([], reference, p.objective, p.collator, folder=tmp_path)
