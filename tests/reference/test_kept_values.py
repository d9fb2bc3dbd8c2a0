"""What a cache keeps are numbers, as the reference gives them."""

from __future__ import annotations

import pytest
import torch

from pact.reference import CachedReference
from tests.reference.problem import Counting, problem
from tests.training.problem import TOKEN_IDS

EXAMPLE = 7


class Poisoned(Counting):
    """A reference whose states of one example are not what they were."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.spoilt = problem().batch(EXAMPLE)["row_target"]

    def __call__(self, batch):
        states = super().__call__(batch)
        if batch["row_target"].tolist() == self.spoilt.tolist():
            states.full_hidden[2] = self.value
        return states


def with_bias(reference, value):
    """A head whose bias moves the last of the safety tokens."""
    head = reference.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    head.bias[TOKEN_IDS[-1]] = value
    return reference


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_values_that_are_no_numbers_are_refused_with_their_example(tmp_path, over, value):
    p = problem(over, gate=False)
    with pytest.raises(ValueError, match=rf"NaN or infinity for example {EXAMPLE} of the data"):
        p.fill(Poisoned(value), tmp_path, max_tokens=1)
    assert not list(tmp_path.glob("shard-*arrow")) and not list(tmp_path.glob("*partial"))


def test_values_beyond_half_precision_are_refused_and_kept_in_single(tmp_path):
    """65520 is the first that fp16 rounds to infinity."""
    p = problem(gate=False)
    far = with_bias(Counting(), -1e5)
    with pytest.raises(ValueError, match=r"within fp16 .* got -1.*: set cache_dtype=fp32"):
        p.fill(far, tmp_path / "half")
    read = CachedReference(p.fill(far, tmp_path / "single", dtype="fp32"))(p.batch(EXAMPLE))
    assert read.full[:, -1].max() < -9e4 and bool(read.full.isfinite().all())


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_a_token_that_the_model_rules_out_is_kept_as_it_is(tmp_path, over):
    p = problem(over, gate=False)
    ruled_out = with_bias(Counting(), -torch.inf)
    full = CachedReference(p.fill(ruled_out, tmp_path))(p.batch(EXAMPLE)).full
    assert bool((full[:, -1] == -torch.inf).all())
    assert bool(full[:, :-1].isfinite().all())
