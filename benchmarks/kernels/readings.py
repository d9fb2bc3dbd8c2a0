"""Every launch of the cases, compiled and read; and which readings are not good enough."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.kernels.cases import Case
from benchmarks.kernels.compiled import Compiled, Configuration, compile_all, specialise
from benchmarks.kernels.gpus import GPUS, Occupancy, has_tensor_operation, occupancy, roofline_us
from pact_kernels.kernels._launch.runtime import TARGETS, Cost, Target, recording

Distinct = tuple[Configuration, Cost, torch.dtype]
"""What tells one line of the report from another."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One compiled kernel and what is to be known of it."""

    cases: tuple[str, ...]
    """Whose launches these are."""
    kernel: str
    target: str
    card: str
    """Whose limits and peaks are used."""
    dtype: str
    warps: int
    stages: int
    cost: Cost
    shared_limit_bytes: int
    error: str | None = None
    """Why there is nothing below."""
    compiled: Compiled | None = None
    fastest_matrix_class: bool | None = None
    """Whether it uses the matrix instructions of the target's fastest class."""
    occupancy: Occupancy | None = None
    roofline_us: float | None = None
    """Least time of the whole launch, at the card's peaks."""


def record(cases: Iterable[Case], targets: Iterable[Target]) -> dict[Distinct, list[Case]]:
    """(configuration, cost, dtype) of every launch, and the cases that make it.

    The chunks of one case share a configuration: the first, which is whole, stands for all.
    """
    launches: dict[Distinct, list[Case]] = {}
    for target in targets:
        for case in cases:
            try:
                with recording(target) as recorded:
                    case.launch()
            except Exception as error:
                error.add_note(f"while {case} was recorded for {target.name}")
                raise
            assert recorded, f"{case} launches nothing"
            costs: dict[Configuration, Cost] = {}
            for launch in recorded:
                costs.setdefault(specialise(launch, target), launch.cost)
            for configuration, cost in costs.items():
                launches.setdefault((configuration, cost, case.dtype), []).append(case)
    return launches


def read(
    configuration: Configuration,
    cost: Cost,
    dtype: torch.dtype,
    cases: Sequence[Case],
    result: Compiled | str,
) -> Reading:
    """All that follows from a compiled configuration."""
    gpu, options = GPUS[configuration.target], configuration.options
    launched = Reading(
        cases=tuple(map(str, cases)),
        kernel=configuration.kernel,
        target=configuration.target,
        card=gpu.card,
        dtype=cases[0].dtype_name,
        warps=options.warps,
        stages=options.stages,
        cost=cost,
        shared_limit_bytes=TARGETS[configuration.target].shared_bytes,
    )
    if isinstance(result, str):
        return replace(launched, error=result)
    return replace(
        launched,
        compiled=result,
        fastest_matrix_class=has_tensor_operation(gpu, result.code.tensor_operations, fastest=True),
        occupancy=occupancy(
            gpu,
            warps=options.warps,
            registers=result.code.registers,
            shared_bytes=result.shared_bytes,
            tensor_memory_columns=result.tensor_memory_columns,
        ),
        roofline_us=roofline_us(gpu, cost, dtype, product=result.has_product),
    )


def readings(cases: Iterable[Case], targets: Iterable[Target], jobs: int) -> list[Reading]:
    """Readings of every distinct launch, by kernel."""
    launches = record(cases, targets)
    configurations = list(dict.fromkeys(configuration for configuration, _, _ in launches))
    print(f"compiling {len(configurations)} kernels in {jobs} processes", file=sys.stderr)
    results = compile_all(configurations, jobs)
    found = [
        read(configuration, cost, dtype, makers, results[configuration])
        for (configuration, cost, dtype), makers in launches.items()
    ]
    kernels = list(dict.fromkeys(reading.kernel for reading in found))
    return sorted(found, key=lambda reading: kernels.index(reading.kernel))


def problems(reading: Reading) -> list[str]:
    """What `--check` does not let pass."""
    compiled, found = reading.compiled, []
    if compiled is None:
        found.append(f"does not compile: {reading.error}")
    else:
        gpu, code = GPUS[reading.target], compiled.code
        if code.spills:
            found.append(f"spills registers: {code.spills}")
        if compiled.has_product and not has_tensor_operation(gpu, code.tensor_operations):
            wanted = " or ".join(gpu.tensor_operations)
            found.append(f"forms a product without {wanted}")
        if compiled.shared_bytes > reading.shared_limit_bytes:
            found.append(
                f"asks for {compiled.shared_bytes} bytes of shared memory, "
                f"{reading.shared_limit_bytes} are there"
            )
    where = f"{reading.kernel} on {reading.target} ({', '.join(reading.cases)})"
    return [f"{where}: {problem}" for problem in found]
