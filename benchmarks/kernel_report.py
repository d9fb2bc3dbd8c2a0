"""What the compiler makes of every kernel, for GPUs that need not be there.

    python -m benchmarks.kernel_report [--check] [--all] [--targets sm_80 ...] [--ops pact_kl ...]

The launchers run on meta tensors and name what they would launch; that is compiled for each target,
and its machine code read. A roofline time is a bound from the datasheet of the card that is named,
never a measurement.

`--check` fails where a kernel spills registers, forms a product outside the matrix units, asks for
more shared memory than the target has, or does not compile.

It runs where torch and Triton alone are installed, with every Triton that is supported: hence
argparse and a table by hand, not tyro and pandas.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from benchmarks.kernels.cases import CASES, Case
from benchmarks.kernels.compiled import Configuration, compile_all, specialise
from benchmarks.kernels.gpus import (
    GPUS,
    Gpu,
    has_tensor_operation,
    resident_programs,
    roofline_us,
)
from benchmarks.kernels.machine_code import Compiled
from benchmarks.reporting.figures import align
from pact_kernels.kernels._launch.runtime import KIB, TARGETS, Cost, Target, recording

CONTRACT = ("sm_80", "sm_90", "sm_100", "gfx942")
"""The targets that every kernel is promised to compile well for."""
COLUMNS = {
    "target": "",
    "dtype": "",
    "case": "+n: as many more cases launch the same",
    "warps": "",
    "stages": "",
    "regs": "per thread",
    "spill": "bytes per thread, and moves",
    "shared": "KiB of a program / limit of the target",
    "progs": "programs that one processor holds",
    "occ": "warps that it holds, of its most",
    "tensor": "matrix instructions in the code; * not of the target's fastest class",
    "copies": "to shared memory past the registers: UTMALDG is TMA, LDGSTS cp.async",
    "ld": "bytes of the widest load from global memory, TMA apart",
    "st": "bytes of the widest store",
    "MFLOP": "per row tile",
    "KiB": "per row tile, least traffic",
    "B/logit": "bytes read and written of each logit of a chunk; the products around it apart",
    "bound us": "roofline of the launch, from datasheet peaks",
}
"""The table's columns, with what needs saying of them."""
LEFT_ALIGNED = ("target", "dtype", "case", "tensor", "copies")


class Reading(NamedTuple):
    """A kernel that was compiled, a line of the table."""

    configuration: Configuration
    cost: Cost
    dtype: torch.dtype
    cases: tuple[Case, ...]
    """Whose launches these are."""
    result: Compiled | str
    """What the compiler made of it, or its complaint."""

    @property
    def gpu(self) -> Gpu:
        """The card whose limits and peaks are used."""
        return GPUS[self.configuration.target]

    @property
    def shared_limit_bytes(self) -> int:
        return TARGETS[self.configuration.target].shared_bytes


def record(
    cases: Iterable[Case], targets: Iterable[Target]
) -> dict[tuple[Configuration, Cost, torch.dtype], list[Case]]:
    """Every launch, and the cases that make it.

    The chunks of one case share a configuration: the first, which is whole, stands for all.
    """
    launches: dict[tuple[Configuration, Cost, torch.dtype], list[Case]] = {}
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
    """Every distinct launch, compiled and read, by kernel."""
    launches = record(cases, targets)
    configurations = list(dict.fromkeys(configuration for configuration, _, _ in launches))
    print(f"compiling {len(configurations)} kernels in {jobs} processes", file=sys.stderr)
    results = compile_all(configurations, jobs)
    found = [
        Reading(*launch, tuple(makers), results[launch[0]]) for launch, makers in launches.items()
    ]
    kernels = list(dict.fromkeys(configuration.kernel for configuration in configurations))
    return sorted(found, key=lambda reading: kernels.index(reading.configuration.kernel))


def problems(reading: Reading) -> list[str]:
    """What `--check` does not let pass."""
    compiled, found = reading.result, []
    if isinstance(compiled, str):
        found.append(f"does not compile: {compiled}")
    else:
        gpu, limit = reading.gpu, reading.shared_limit_bytes
        if compiled.spills:
            found.append(f"spills registers: {compiled.spills}")
        if compiled.has_product and not has_tensor_operation(gpu, compiled.tensor_operations):
            found.append(f"forms a product without {' or '.join(gpu.tensor_operations)}")
        if compiled.shared_bytes > limit:
            asked = f"asks for {compiled.shared_bytes} bytes of shared memory"
            found.append(f"{asked}, {limit} are there")
    kernel, target = reading.configuration.kernel, reading.configuration.target
    where = f"{kernel} on {target} ({', '.join(map(str, reading.cases))})"
    return [f"{where}: {problem}" for problem in found]


def cells(reading: Reading) -> list[str]:
    """One line of the table."""
    compiled, cost, gpu = reading.result, reading.cost, reading.gpu
    (first, *others), options = reading.cases, reading.configuration.options
    failed = isinstance(compiled, str)
    left = [
        reading.configuration.target,
        first.dtype_name,
        f"{first.op} {first.variant}"
        + (f" +{len(others)}" if others else "")
        + (": does not compile" if failed else ""),
        f"{options.warps}",
        f"{options.stages}",
    ]
    if isinstance(compiled, str):
        return left + [""] * (len(COLUMNS) - len(left))
    operations = compiled.tensor_operations
    older = operations and not has_tensor_operation(gpu, operations, fastest=True)
    programs = resident_programs(
        gpu,
        warps=options.warps,
        registers=compiled.registers,
        shared_bytes=compiled.shared_bytes,
        tensor_memory_columns=compiled.tensor_memory_columns,
    )
    bound_us = roofline_us(gpu, cost, reading.dtype, product=compiled.has_product)
    return [
        *left,
        f"{compiled.registers}",
        f"{compiled.spills}",
        f"{compiled.shared_bytes / KIB:.1f}/{reading.shared_limit_bytes // KIB}",
        f"{programs}",
        f"{programs * options.warps / gpu.warps:.0%}",
        _counted(operations) + ("*" if older else ""),
        _counted(compiled.copies),
        f"{compiled.widest_load_bytes or '-'}",
        f"{compiled.widest_store_bytes or '-'}",
        f"{cost.flops / cost.row_tiles / 1e6:,.1f}",
        f"{cost.bytes / cost.row_tiles / KIB:,.1f}",
        f"{cost.logit_bytes or '-'}",
        f"{bound_us:,.1f}",
    ]


def table(found: Sequence[Reading]) -> str:
    """All readings, aligned, a block for each kernel."""
    left = [place for place, name in enumerate(COLUMNS) if name in LEFT_ALIGNED]
    header, *lines = align([list(COLUMNS), *map(cells, found)], left).splitlines()
    blocks: list[str] = []
    pairs = zip(found, lines, strict=True)
    for kernel, block in groupby(pairs, lambda pair: pair[0].configuration.kernel):
        blocks += [kernel, header, *(line for _, line in block), ""]
    cards = ", ".join(
        dict.fromkeys(f"{each.configuration.target} {each.gpu.card}" for each in found)
    )
    legend = [f"{name:10s}{meaning}" for name, meaning in COLUMNS.items() if meaning]
    return "\n".join([*blocks, f"limits and peaks of: {cards}", *legend])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if `--check` found something."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="print every problem, exit with 1")
    parser.add_argument("--all", action="store_true", help="every variant of every op and target")
    contract = " ".join(CONTRACT)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, help=f"default: {contract}")
    ops = list(dict.fromkeys(case.op for case in CASES))
    parser.add_argument("--ops", nargs="+", choices=ops, help="default: all")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: CPUs)"
    )
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"argument --jobs: must be positive, got {args.jobs}")
    chosen = args.targets or (TARGETS if args.all else CONTRACT)
    targets = [name for name in TARGETS if name in chosen]
    cases = [
        case
        for case in CASES
        if (args.all or case.default) and (args.ops is None or case.op in args.ops)
    ]
    found = readings(cases, [TARGETS[name] for name in targets], args.jobs)
    print(table(found))
    complaints = [x for reading in found for x in problems(reading)] if args.check else []
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


def _counted(count: dict[str, int]) -> str:
    return " ".join(f"{name} {number}" for name, number in count.items()) or "-"


if __name__ == "__main__":
    raise SystemExit(main())
