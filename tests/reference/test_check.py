"""Before the first step the student is its reference; the check says what is wrong if not."""

from __future__ import annotations

import copy

import pytest
import torch

from pact.data.packing import PackedCollator
from pact.reference import (
    AdaptersOff,
    CachedReference,
    FrozenModel,
    check_same_model,
    is_fresh,
)
from tests.reference.problem import WITHOUT_ROWS, adapted, problem
from tests.rounding import STATES
from tests.tiny import tiny_llama


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_a_fresh_student_is_its_reference(tmp_path, over):
    p = problem(over)
    batch = p.batch(0, 1, 2, 3)
    student = adapted(tiny_llama(seed=1)).train()
    live = AdaptersOff(student)
    frozen = FrozenModel(tiny_llama(seed=1))
    assert check_same_model(student, live, batch, p.objective) < STATES
    assert check_same_model(student, frozen, batch, p.objective) < STATES
    assert student.training
    exact = CachedReference(p.fill(frozen, tmp_path / "exact", dtype="fp32"))
    assert check_same_model(student, exact, batch, p.objective) < STATES
    rounded = CachedReference(p.fill(frozen, tmp_path / "rounded"))
    assert 1e-4 < check_same_model(student, rounded, batch, p.objective) < 2e-2


def test_packed_batches_are_checked_alike():
    p = problem()
    packed = PackedCollator(p.collator.header_ids, p.collator.pad_token_id)
    student = adapted(tiny_llama(seed=1))
    batch = p._replace(collator=packed).batch(0, 1, 3)
    assert check_same_model(student, AdaptersOff(student), batch, p.objective) < STATES


@pytest.mark.parametrize("precision", ["weights", "autocast"])
def test_bfloat16_is_rounding_not_another_model(tmp_path, precision):
    p = problem()
    model = tiny_llama(seed=1)
    student = adapted(model.bfloat16() if precision == "weights" else model)
    other = FrozenModel(tiny_llama(seed=2).to(model.dtype))
    on = precision == "autocast"
    cache = p.fill(AdaptersOff(student), tmp_path, compute_dtype="bf16" if on else "fp32")
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        batch = p.batch(0, 1)
        check_same_model(student, AdaptersOff(student), batch, p.objective)
        check_same_model(student, CachedReference(cache), batch, p.objective)
        with pytest.raises(ValueError, match="another model"):
            check_same_model(student, other, batch, p.objective)


def test_another_model_is_found(tmp_path):
    p = problem()
    batch = p.batch(0, 1)
    student = adapted(tiny_llama(seed=1))
    other = FrozenModel(tiny_llama(seed=2))
    with pytest.raises(ValueError, match=r"differ by up to \d.*the reference is another model"):
        check_same_model(student, other, batch, p.objective)
    with pytest.raises(ValueError, match="the cache is of another model or other data"):
        stale = CachedReference(p.fill(other, tmp_path))
        check_same_model(student, stale, batch, p.objective)


def test_rows_of_other_examples_are_found(tmp_path):
    p = problem()
    student = adapted(tiny_llama(seed=1))
    cached = CachedReference(p.fill(AdaptersOff(student), tmp_path))
    batch = p.batch(0, 1)
    batch = {**batch, "example": batch["example"].flip(0)}  # as many rows in all
    with pytest.raises(ValueError, match="the cache is of another model or other data"):
        check_same_model(student, cached, batch, p.objective)


def test_a_reference_with_its_adapters_left_on_is_found():
    p = problem()
    model = adapted(tiny_llama(seed=1), scale=0.1)
    student = adapted(tiny_llama(seed=1))
    with pytest.raises(ValueError, match="runs with adapters on"):
        check_same_model(student, FrozenModel(model), p.batch(0), p.objective)


def test_a_student_whose_adapters_do_something_is_found():
    p = problem()
    student = adapted(tiny_llama(seed=1), scale=0.1)
    with pytest.raises(ValueError, match="adapters are not the identity"):
        check_same_model(student, AdaptersOff(student), p.batch(0), p.objective)


def test_dropout_of_the_reference_is_found():
    p = problem()
    model = tiny_llama(seed=1)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    student = copy.deepcopy(model).train()
    reference = FrozenModel(model)
    # The student's own dropout is no fault.
    assert check_same_model(student, reference, p.batch(0), p.objective) < STATES
    model.train()
    with pytest.raises(ValueError, match="its dropout is on"):
        check_same_model(student, reference, p.batch(0), p.objective)


def test_logits_that_are_not_numbers_are_found():
    p = problem()
    model = tiny_llama(seed=1)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="differ by up to inf"):
        check_same_model(tiny_llama(seed=1), FrozenModel(model), p.batch(0), p.objective)


def test_a_batch_without_rows_has_nothing_to_compare():
    p = problem()
    student = tiny_llama(seed=1)
    reference = FrozenModel(tiny_llama(seed=2))
    assert check_same_model(student, reference, p.batch(WITHOUT_ROWS), p.objective) == 0.0


def test_fresh_adapters_are_all_the_identity():
    assert is_fresh(adapted(tiny_llama()))
    assert not is_fresh(tiny_llama())  # it has none
    model = adapted(tiny_llama())
    last = [p for name, p in model.named_parameters() if "lora_B" in name][-1]
    with torch.no_grad():
        last[-1, -1] = 1e-6
    assert not is_fresh(model)
