"""Every launch of the cases, compiled and read; and which readings are not good enough."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.kernels.cases import Case
from benchmarks.kernels.compiled import Compiled, Configuration, compile_all, specialise
from benchmarks.kernels.gpus import GPUS, Gpu, Occupancy, has_tensor_operation, occupancy
from benchmarks.kernels.gpus import roofline_us as least_us
from pact_kernels.kernels._launch.runtime import TARGETS, Cost, Target, recording

Distinct = tuple[Configuration, Cost, torch.dtype]
"""What tells one line of the report from another."""


@dataclass(frozen=True)
class Reading:
    """One compiled kernel, and what follows from it."""

    configuration: Configuration
    cost: Cost
    dtype: torch.dtype
    cases: tuple[Case, ...]
    """Whose launches these are."""
    result: Compiled | str
    """What the compiler made of it, or its complaint."""

    @property
    def compiled(self) -> Compiled | None:
        return None if isinstance(self.result, str) else self.result

    @property
    def kernel(self) -> str:
        return self.configuration.kernel

    @property
    def target(self) -> str:
        return self.configuration.target

    @property
    def gpu(self) -> Gpu:
        """The card whose limits and peaks are used."""
        return GPUS[self.target]

    @property
    def shared_limit_bytes(self) -> int:
        return TARGETS[self.target].shared_bytes

    def occupancy(self, compiled: Compiled) -> Occupancy:
        return occupancy(
            self.gpu,
            warps=self.configuration.options.warps,
            registers=compiled.code.registers,
            shared_bytes=compiled.shared_bytes,
            tensor_memory_columns=compiled.tensor_memory_columns,
        )

    def roofline_us(self, compiled: Compiled) -> float:
        """Least time of the whole launch, at the card's peaks."""
        return least_us(self.gpu, self.cost, self.dtype, product=compiled.has_product)


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


def readings(cases: Iterable[Case], targets: Iterable[Target], jobs: int) -> list[Reading]:
    """Readings of every distinct launch, by kernel."""
    launches = record(cases, targets)
    configurations = list(dict.fromkeys(configuration for configuration, _, _ in launches))
    print(f"compiling {len(configurations)} kernels in {jobs} processes", file=sys.stderr)
    results = compile_all(configurations, jobs)
    found = [
        Reading(configuration, cost, dtype, tuple(makers), results[configuration])
        for (configuration, cost, dtype), makers in launches.items()
    ]
    kernels = list(dict.fromkeys(reading.kernel for reading in found))
    return sorted(found, key=lambda reading: kernels.index(reading.kernel))


def problems(reading: Reading) -> list[str]:
    """What `--check` does not let pass."""
    compiled, gpu, found = reading.compiled, reading.gpu, []
    if compiled is None:
        found.append(f"does not compile: {reading.result}")
    else:
        operations, limit = compiled.code.tensor_operations, reading.shared_limit_bytes
        if compiled.code.spills:
            found.append(f"spills registers: {compiled.code.spills}")
        if compiled.has_product and not has_tensor_operation(gpu, operations):
            found.append(f"forms a product without {' or '.join(gpu.tensor_operations)}")
        if compiled.shared_bytes > limit:
            asked = f"asks for {compiled.shared_bytes} bytes of shared memory"
            found.append(f"{asked}, {limit} are there")
    where = f"{reading.kernel} on {reading.target} ({', '.join(map(str, reading.cases))})"
    return [f"{where}: {problem}" for problem in found]
