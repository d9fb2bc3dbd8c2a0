"""How many processes a launcher started, by what it says in the environment."""

from __future__ import annotations

import os

SIZES = (
    "WORLD_SIZE",  # torchrun, accelerate launch
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",  # of one srun; an allocation may be larger than what runs in it
)


def check_joined(num_processes: int) -> None:
    """Refuse to run as one of several processes that do not know of each other.

    Raises:
        ValueError: a launcher says that it started more than `num_processes`.
    """
    for name in SIZES:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > num_processes:
            what = "this runs in one process" if num_processes == 1 else f"{num_processes} joined"
            raise ValueError(
                f"every process that was started must be joined, got {name}={value} where {what}: "
                "each would write the same files; start it with torchrun or accelerate launch if "
                "it takes several, else without a launcher"
            )
