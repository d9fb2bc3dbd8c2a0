"""What the machine code of a kernel says: registers, spills, matrix instructions, copies.

Read from text: for NVIDIA the resource usage and the instructions (SASS) as `cuobjdump` prints
them, for AMD the assembly that the compiler ends with. A count is of instructions in the code, not
of how often they run. Triton's own register and spill counts come with a loaded kernel, which needs
the card; Nsight Compute and rocprof need it too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spills:
    """Registers that the compiler had to put into memory; any of them is too many."""

    bytes: int = 0
    """Per thread: NVIDIA's stack and local memory, AMD's scratch (private segment)."""
    moves: int = 0
    """Instructions that put them there and read them back (STL and LDL, scratch_...)."""
    registers: int = 0
    """AMD's vgpr_spill_count and sgpr_spill_count."""

    def __bool__(self) -> bool:
        return any((self.bytes, self.moves, self.registers))

    def __str__(self) -> str:
        moved = f"{self.registers} registers" if self.registers else f"{self.moves} moves"
        return f"{self.bytes} B, {moved}" if self else "-"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of a kernel: its machine code shows all but the last three."""

    registers: int
    """Per thread; on AMD vector and accumulation registers together."""
    spills: Spills
    tensor_operations: dict[str, int]
    """Matrix instructions by class: HMMA, HGMMA, UTCHMMA, MFMA, ..."""
    copies: dict[str, int]
    """Copies to shared memory that pass no register: UTMALDG (TMA), LDGSTS (cp.async), ..."""
    widest_load_bytes: int
    """Most that a lane reads in one instruction from global memory; bulk copies of TMA apart."""
    widest_store_bytes: int
    shared_bytes: int = 0
    """Shared memory of a program."""
    tensor_memory_columns: int = 0
    has_product: bool = False
    """Whether the kernel as written contains a matrix product."""


def read_nvidia(text: str) -> Compiled:
    """From what `cuobjdump --dump-resource-usage --dump-sass` prints."""
    usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if not usage:
        raise ValueError(f"no resource usage in cuobjdump's output: {text[:200]!r}")
    registers, stack_bytes, local_bytes = (
        max(map(int, column)) for column in zip(*usage, strict=True)
    )
    # /*0a70*/   @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)", text)
    count = Counter(name.partition(".")[0] for name in names)
    return Compiled(
        registers=registers,
        spills=Spills(bytes=stack_bytes + local_bytes, moves=count["LDL"] + count["STL"]),
        tensor_operations=_matching(count, r"HMMA|[HIQ]GMMA|UTC[A-Z]*MMA"),
        copies=_matching(count, r"UTMALDG|UTMASTG|UBLKCP|LDGSTS"),
        widest_load_bytes=_widest(names, r"LDG|LDGSTS"),
        widest_store_bytes=_widest(names, r"STG"),
    )


def read_amd(text: str) -> Compiled:
    """From the assembly."""
    lines = [line.partition(";")[0].split() for line in text.splitlines()]
    instructions = [line for line in lines if line and re.fullmatch(r"[a-z]\w+", line[0])]
    count = Counter(_amd_class(line) for line in instructions)
    names = [line[0] for line in instructions]
    return Compiled(
        registers=_amd_field(text, "vgpr_count"),  # agpr_count is a part of it
        spills=Spills(
            bytes=_amd_field(text, "private_segment_fixed_size"),
            moves=count["scratch"],
            registers=sum(_amd_field(text, f"{kind}gpr_spill_count") for kind in "vs"),
        ),
        tensor_operations=_matching(count, r"MFMA|SMFMAC"),
        copies=_matching(count, r"LOAD_LDS"),
        widest_load_bytes=_amd_widest(names, "load"),
        widest_store_bytes=_amd_widest(names, "store"),
    )


def _matching(count: Counter[str], pattern: str) -> dict[str, int]:
    return {name: count[name] for name in sorted(count) if re.fullmatch(pattern, name)}


def _widest(names: Iterable[str], pattern: str) -> int:
    """Bytes of the widest access of SASS mnemonics, as in LDG.E.128 or STG.E.U16; 4 if unsaid."""
    widths = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
    widest = 0
    for name in names:
        base, *modifiers = name.split(".")
        if re.fullmatch(pattern, base):
            widest = max(widest, next((widths[m] for m in modifiers if m in widths), 4))
    return widest


def _amd_widest(names: Iterable[str], direction: str) -> int:
    """As `_widest`, of names like buffer_load_dwordx4 or global_store_short."""
    widths = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
    access = re.compile(
        rf"(?:buffer|global|flat)_{direction}_(?:lds_)?[us]?(byte|short|dword(?:x[234])?)(?:_\w+)?"
    )
    return max((widths[found[1]] for name in names if (found := access.fullmatch(name))), default=0)


def _amd_class(instruction: list[str]) -> str:
    """The class that is counted of a mnemonic and its operands, or the mnemonic."""
    name = instruction[0]
    if found := re.match(r"v_(mfma|smfmac)_", name):
        return found[1].upper()
    if re.match(r"scratch_(load|store)_", name):
        return "scratch"
    loads = re.match(r"(buffer|global)_load_", name)
    if loads and ("_lds_" in name or instruction[-1] == "lds"):
        return "LOAD_LDS"
    return name


def _amd_field(text: str, name: str) -> int:
    """Largest value of a field of the code object's metadata, over the kernels in it."""
    values = re.findall(rf"^\s+(?:- )?\.{name}:\s+(\d+)", text, re.MULTILINE)
    if not values:
        raise ValueError(f"no .{name} in the assembly's metadata")
    return max(map(int, values))
