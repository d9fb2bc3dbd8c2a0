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
from collections.abc import Sequence
from itertools import groupby

from benchmarks.kernels.cases import CASES
from benchmarks.kernels.gpus import has_tensor_operation
from benchmarks.kernels.readings import Reading, problems, readings
from benchmarks.reporting.figures import align
from pact_kernels.kernels._launch.runtime import KIB, TARGETS

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


def cells(reading: Reading) -> list[str]:
    """One line of the table."""
    compiled, cost, options = reading.compiled, reading.cost, reading.configuration.options
    first, *others = reading.cases
    left = [
        reading.target,
        first.dtype_name,
        f"{first.op} {first.variant}"
        + (f" +{len(others)}" if others else "")
        + (": does not compile" if compiled is None else ""),
        f"{options.warps}",
        f"{options.stages}",
    ]
    if compiled is None:
        return left + [""] * (len(COLUMNS) - len(left))
    code, occupancy = compiled.code, reading.occupancy(compiled)
    operations = code.tensor_operations
    older = operations and not has_tensor_operation(reading.gpu, operations, fastest=True)
    return [
        *left,
        f"{code.registers}",
        f"{code.spills}",
        f"{compiled.shared_bytes / KIB:.1f}/{reading.shared_limit_bytes // KIB}",
        f"{occupancy.programs}",
        f"{occupancy.fraction:.0%}",
        _counted(operations) + ("*" if older else ""),
        _counted(code.copies),
        f"{code.widest_load_bytes or '-'}",
        f"{code.widest_store_bytes or '-'}",
        f"{cost.flops / cost.row_tiles / 1e6:,.1f}",
        f"{cost.bytes / cost.row_tiles / KIB:,.1f}",
        f"{cost.logit_bytes or '-'}",
        f"{reading.roofline_us(compiled):,.1f}",
    ]


def table(found: Sequence[Reading]) -> str:
    """All readings, aligned, a block for each kernel."""
    left = [place for place, name in enumerate(COLUMNS) if name in LEFT_ALIGNED]
    header, *lines = align([list(COLUMNS), *map(cells, found)], left).splitlines()
    blocks: list[str] = []
    for kernel, block in groupby(zip(found, lines, strict=True), lambda pair: pair[0].kernel):
        blocks += [kernel, header, *(line for _, line in block), ""]
    cards = ", ".join(dict.fromkeys(f"{reading.target} {reading.gpu.card}" for reading in found))
    legend = [f"{name:10s}{meaning}" for name, meaning in COLUMNS.items() if meaning]
    return "\n".join([*blocks, f"limits and peaks of: {cards}", *legend])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if `--check` found something."""
    args = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
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
        "--jobs", type=_positive, default=os.cpu_count() or 1, help="processes (default: CPUs)"
    )
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def _counted(count: dict[str, int]) -> str:
    return " ".join(f"{name} {number}" for name, number in count.items()) or "-"


if __name__ == "__main__":
    raise SystemExit(main())
