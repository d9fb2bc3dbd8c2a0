"""Order of the data, learning rate and noise: functions of the settings and the step alone."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import get_cosine_schedule_with_warmup

from pact.training.config import FitConfig
from pact.training.schedule import Plan, example_lengths


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.25, 1.0])  # none, rounded up, whole, all
def test_learning_rate_is_the_cosine_of_transformers(warmup_ratio: float) -> None:
    plan = Plan(FitConfig(learning_rate=0.5, max_steps=24, warmup_ratio=warmup_ratio), 100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = get_cosine_schedule_with_warmup(optimizer, plan.num_warmup_steps, 24)
    for step in range(24):
        assert plan.learning_rate(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-15)
        optimizer.step()
        theirs.step()


def test_every_epoch_holds_every_example_once_in_its_own_order() -> None:
    plan = Plan(FitConfig(batch_size=8, epochs=2), 21)  # 21: the last step of an epoch has 5
    assert (plan.steps_per_epoch, plan.num_steps) == (3, 6)
    epochs = [[i for step in steps for i in plan.indices(step)] for steps in ((0, 1, 2), (3, 4, 5))]
    assert [len(plan.indices(step)) for step in range(3)] == [8, 8, 5]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(21))
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    plan = Plan(FitConfig(seed=3), 50)
    same = Plan(FitConfig(seed=3, epochs=9, learning_rate=1.0, micro_batch_size=2), 50)
    other = Plan(FitConfig(seed=4), 50)
    assert [plan.indices(s) for s in range(7)] == [same.indices(s) for s in range(7)]
    assert plan.indices(0) != other.indices(0)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_micro_batches_share_a_step_out(num_processes: int) -> None:
    plan = Plan(FitConfig(batch_size=8, micro_batch_size=3), 21)
    for step in range(3):
        shares = [plan.micro_batches(step, p, num_processes) for p in range(num_processes)]
        examples = [i for share in shares for micro_batch in share for i in micro_batch]
        assert sorted(examples) == sorted(plan.indices(step))
        assert max(len(micro_batch) for share in shares for micro_batch in share) <= 3


def test_a_step_smaller_than_the_processes_leaves_some_without_a_share() -> None:
    plan = Plan(FitConfig(batch_size=4), 5)
    assert plan.micro_batches(1, process=1, num_processes=2) == []


ORDERS = {
    False: [[9, 7, 0, 2], [1, 4, 6, 10], [5, 3, 8], [7, 4, 10, 1], [2, 5, 9, 0], [8, 6, 3]],
    True: [[0, 6, 1, 9], [4, 7, 2, 10], [5, 3, 8], [0, 1, 9, 4], [7, 2, 10, 5], [8, 6, 3]],
}
"""By group_by_length: the steps of two epochs of 11 examples, which a resumed run draws again."""


@pytest.mark.parametrize("by_length", [False, True])
def test_the_order_is_that_of_runs_before(by_length: bool) -> None:
    """Whichever step is asked for first, and however it is shared out."""
    config = FitConfig(
        batch_size=4, epochs=2, seed=3, group_by_length=by_length, micro_batch_size=1
    )
    lengths = [(37 * n) % 97 + 1 for n in range(11)]
    for steps in (range(6), range(5, -1, -1), [4, 0, 5, 2]):
        plan = Plan(config, 11, lengths if by_length else None)
        assert [plan.indices(step) for step in steps] == [ORDERS[by_length][s] for s in steps]
    shares = [plan.micro_batches(4, process, 2) for process in range(2)]
    assert shares == [[[i] for i in ORDERS[by_length][4][process::2]] for process in range(2)]


def test_an_epochs_order_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    own = Plan._drawn
    monkeypatch.setattr(Plan, "_drawn", lambda plan, n: (drawn.append(n), own(plan, n))[1])
    plan = Plan(FitConfig(batch_size=4, epochs=3), 20)
    for step in range(plan.num_steps):
        plan.indices(step)
    assert drawn == [0, 1, 2]
    assert len(plan._order) == 1


def test_lengths_are_those_of_the_examples_in_their_order() -> None:
    rows = [{"input_ids": [1] * (1 + n % 5), "labels": [1] * (1 + n % 5)} for n in range(9)]
    shuffled = Dataset.from_list(rows).select([8, 3, 0, 5])
    assert example_lengths(shuffled).tolist() == [4, 4, 1, 1]
    assert example_lengths([rows[n] for n in (8, 3, 0, 5)]).tolist() == [4, 4, 1, 1]


def test_max_steps_goes_beyond_and_stops_before_the_epochs() -> None:
    assert Plan(FitConfig(batch_size=5, epochs=1, max_steps=9), 10).num_steps == 9
    assert Plan(FitConfig(batch_size=5, epochs=7, max_steps=1), 10).num_steps == 1


def test_noise_differs_between_steps_processes_and_seeds() -> None:
    plans = [Plan(FitConfig(seed=seed), 10) for seed in (0, 1)]
    seeds = {
        plan.noise_seed(step, process) for plan in plans for step in (0, 1) for process in (0, 1)
    }
    assert len(seeds) == 8
    assert plans[0].noise_seed(1, 0) == plans[0].noise_seed(1, 0)


def test_steps_by_length_have_anchors_alike() -> None:
    config = FitConfig(batch_size=4, epochs=1, group_by_length=True)
    rows = [{"input_ids": [1] * size, "labels": [1] * size} for size in range(10, 26)]
    anchors = [{**row, "input_ids": [1, 2], "anchor": True} for row in rows]
    plan = Plan.over(rows + anchors, config)
    counts = [sum(index >= 16 for index in plan.indices(step)) for step in range(8)]
    assert counts == [2] * 8
    as_columns = Dataset.from_list([{"anchor": False, **row} for row in rows + anchors])
    assert Plan.over(as_columns, config).indices(3) == plan.indices(3)
    assert Plan.over(rows, config).anchors is None


def test_steps_by_length_hold_every_example_once_in_an_order_per_epoch() -> None:
    lengths = [(37 * n) % 97 + 1 for n in range(101)]  # 1 .. 97, in no order; 101: 5 are left over
    plan = Plan(FitConfig(batch_size=8, epochs=2, group_by_length=True, seed=3), 101, lengths)
    epochs = [[plan.indices(step) for step in range(13 * n, 13 * (n + 1))] for n in (0, 1)]
    for steps in epochs:
        assert [len(step) for step in steps] == [8] * 12 + [5]
        assert sorted(index for step in steps for index in step) == list(range(101))
        spreads = [max(lengths[i] for i in s) - min(lengths[i] for i in s) for s in steps[:12]]
        assert max(spreads) < 20  # of 96
    assert epochs[0] != epochs[1]
    same = Plan(FitConfig(batch_size=8, epochs=9, group_by_length=True, seed=3), 101, lengths)
    assert same.indices(20) == plan.indices(20)
