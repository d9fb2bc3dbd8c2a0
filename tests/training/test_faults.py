"""What one of two processes meets ends both with the same line, and none waits for the other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.training.faults import BAD, SCENES, main
from tests.training.two import in_two_processes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By scene: what each of two processes came to."""
    folder = tmp_path_factory.mktemp("faults")
    in_two_processes(main, folder)
    return {
        scene.__name__: [
            json.loads((folder / f"{scene.__name__}-{process}.json").read_text())
            for process in range(2)
        ]
        for scene in SCENES
    }


ENDS = {
    "not_finite": (
        f"the loss must be finite, got nan in step 2 (cross-entropy 5.939, kl 0, gradient's norm "
        f"nan), examples {BAD}, counted from 0: ",
        2,
        None,
    ),
    "disk_full": (
        "the checkpoint of step 4 could not be written: [Errno 28] No space left on device; the "
        "newest checkpoint is ",
        2,
        "step-00000002",
    ),
    "no_record": ("the metrics could not be written: [Errno 28] No space", 2, "step-00000002"),
    "told": ("stopped by SIGTERM after step 3; ", 143, "step-00000003"),
}
"""Scene -> how its error begins, its exit code, and the newest checkpoint."""


@pytest.mark.parametrize("scene", ENDS)
def test_both_end_alike(scene: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    first, second = outcomes[scene]
    start, code, newest = ENDS[scene]
    assert first["error"].startswith(start)
    assert first == second
    assert (first["code"], first["newest"]) == (code, newest)


def test_both_leave_the_same_steps_out(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    first, second = outcomes["left_out"]
    assert first["skipped"] == second["skipped"] == [0, 1, 1, 1, 1, 2]
    assert first["sums"] == second["sums"]


def test_a_resumed_run_of_two_ends_with_the_same_bits(
    outcomes: dict[str, list[dict[str, Any]]],
) -> None:
    assert [found["same"] for found in outcomes["order"]] == [True, True]
