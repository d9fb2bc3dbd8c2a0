"""Roofline times of the head: what passes over the chunk, on either way."""

from __future__ import annotations

import pytest

from benchmarks.kernels.gpus import GPUS
from benchmarks.kernels.roofline import table, time_ms, work_of
from pact_kernels.kernels._launch.configs import TAKES_EXPONENTIALS

# The vocabulary is of whole 16 bytes: the chunk's rows have no gaps. 4 N D V come to 1.3e12 flops,
# for which exponentials are taken.
HEAD = (4096, 20000)
NUM_ROWS = 4096


# (exponentials, trained) -> bytes per logit: what is written and read, see the operators' page
PASSES = {(False, False): 10, (False, True): 12, (True, False): 4, (True, True): 6}


@pytest.mark.parametrize("way", PASSES, ids=str)
def test_bytes_per_logit(way: tuple[bool, bool]) -> None:
    exponentials, trained = way
    before = dict(TAKES_EXPONENTIALS)
    works = work_of(NUM_ROWS, HEAD, "sm_90", exponentials=exponentials, trained=trained)
    assert sum(work.chunk_bytes for work in works) == PASSES[way] * NUM_ROWS * HEAD[1]
    flops = sum(work.cost.flops for work in works if work.is_product)
    assert flops == (6 if trained else 4) * NUM_ROWS * HEAD[0] * HEAD[1]
    assert before == TAKES_EXPONENTIALS


def test_more_bandwidth_is_no_slower() -> None:
    works = work_of(NUM_ROWS, HEAD, "sm_90", exponentials=False, trained=False)
    slow, fast = (time_ms(works, GPUS["sm_90"], bandwidth) for bandwidth in (None, 4.8))
    assert 0.0 < fast < slow


def test_the_table_has_a_line_for_every_card_and_head() -> None:
    lines = table(512, trained=False).splitlines()
    assert len(lines) == 1 + 5 * 6
    assert {line.split()[-1] for line in lines if line.startswith("H200")} == {"exp"}
    assert {line.split()[-1] for line in lines if line.startswith("MI300X")} == {"logits"}
