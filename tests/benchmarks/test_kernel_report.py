"""The report: what it lets pass, what it prints, what it writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks import kernel_report
from benchmarks.kernel_report import COLUMNS, Reading, main, problems, record, table
from benchmarks.kernels.cases import Case, meta
from benchmarks.kernels.compiled import Configuration
from benchmarks.kernels.machine_code import Compiled, Spills
from pact_kernels.kernels._kernels.linear_logsumexp import launch_linear_logsumexp
from pact_kernels.kernels._launch.runtime import KIB, TARGETS, Cost, Options
from pact_kernels.types import Head

GOOD = Compiled(
    registers=128,
    spills=Spills(),
    tensor_operations={"HMMA": 64},
    copies={"LDGSTS": 32},
    widest_load_bytes=16,
    widest_store_bytes=4,
    shared_bytes=81 * KIB,
    tensor_memory_columns=0,
    has_product=True,
)


@dataclass(frozen=True)
class Rows(Case):
    """A case of so many rows, and of 192 tokens: not a multiple of the 128 in a tile."""

    num_rows: int = 16

    def launch(self) -> None:
        launch_linear_logsumexp(
            meta(self.num_rows, 64, dtype=self.dtype),
            Head(meta(192, 64, dtype=self.dtype)),
            limit_bytes=1024,  # two fp32 partials of 128 rows: a row tile is a chunk
        )


class Failing(Rows):
    def launch(self) -> None:
        raise ValueError("no")


def case(num_rows: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    return Rows("op", f"N{num_rows}", dtype, num_rows=num_rows)


def reading(result: Compiled | str = GOOD, target: str = "sm_80") -> Reading:
    configuration = Configuration(
        module="m",
        kernel="_k",
        target=target,
        options=Options(warps=8, stages=3),
        signature=(),
        constants=(),
        attributes=(),
    )
    # 2 row tiles of 156 Mflop; 312 Mflop take a microsecond of an A100
    cost = Cost(flops=312_000_000, bytes=4 * KIB, row_tiles=2, logit_bytes=2)
    return Reading(configuration, cost, torch.bfloat16, (case(16),), result)


def test_a_good_kernel_has_no_problem() -> None:
    assert problems(reading()) == []


@pytest.mark.parametrize("field", ["bytes", "moves", "registers"])
def test_every_trace_of_a_spill_is_a_problem(field: str) -> None:
    (problem,) = problems(reading(replace(GOOD, spills=Spills(**{field: 4}))))
    assert "_k on sm_80 (op bf16 N16): spills registers" in problem


@pytest.mark.parametrize(
    "target, operations, wanted",
    [
        ("sm_80", {}, "HMMA"),
        ("sm_90", {}, "HGMMA or HMMA"),
        ("sm_100", {"HGMMA": 4}, "UTC*MMA or HMMA"),  # another target's
        ("gfx942", {"HMMA": 4}, "MFMA or SMFMAC"),
    ],
)
def test_a_product_off_the_targets_matrix_units_is_a_problem(
    target: str, operations: dict[str, int], wanted: str
) -> None:
    compiled = replace(GOOD, tensor_operations=operations, shared_bytes=0)
    (problem,) = problems(reading(compiled, target))
    assert problem.endswith(f"forms a product without {wanted}")
    assert problems(reading(replace(compiled, has_product=False), target)) == []


def test_shared_memory_beyond_the_target_is_a_problem_and_fits_nowhere() -> None:
    large = replace(GOOD, shared_bytes=163 * KIB + 1)
    (problem,) = problems(reading(large))
    assert "asks for 166913 bytes of shared memory, 166912 are there" in problem
    line = table([reading(large)]).splitlines()[2]
    assert "  163.0/163      0   0%  " in line


def test_what_does_not_compile_is_a_problem_with_its_complaint() -> None:
    (problem,) = problems(reading("ValueError: no such thing"))
    assert problem.endswith("does not compile: ValueError: no such thing")


def test_several_problems_are_all_told() -> None:
    bad = replace(GOOD, spills=Spills(moves=1), tensor_operations={}, shared_bytes=1 << 20)
    assert len(problems(reading(bad))) == 3


def test_cases_share_what_they_launch_alike() -> None:
    """And the chunks of one case, of which the first stands for all."""
    # 160 rows: a chunk of 128 and one of 32. Another dtype shares nothing.
    cases = [case(128), case(160), case(128, torch.float16)]
    found = record(cases, [TARGETS["sm_80"]])
    by_kernel = [(key[0].kernel, key[2], len(makers)) for key, makers in found.items()]
    assert by_kernel == [
        ("_linear_logsumexp_kernel", torch.bfloat16, 2),
        ("_finish_logsumexp_kernel", torch.bfloat16, 2),
        ("_linear_logsumexp_kernel", torch.float16, 1),
        ("_finish_logsumexp_kernel", torch.float16, 1),
    ]
    # Both dtypes' finaliser is one kernel to the compiler.
    assert len({configuration for configuration, _, _ in found}) == 3


def test_a_launcher_that_fails_is_named() -> None:
    with pytest.raises(ValueError) as raised:
        record([Failing("op", "N16")], [TARGETS["sm_90"]])
    assert raised.value.__notes__ == ["while op bf16 N16 was recorded for sm_90"]


def test_the_table_is_aligned_and_says_what_a_reading_says() -> None:
    text = table([reading(), reading("ValueError: no")])
    kernel, header, line, failed, *_ = text.splitlines()
    assert kernel == "_k"
    assert header.split("  ")[0] == "target"
    values = dict(zip(COLUMNS, [part for part in line.split("  ") if part.strip()], strict=True))
    assert {name: value.strip() for name, value in values.items()} == {
        "target": "sm_80",
        "dtype": "bf16",
        "case": "op N16",
        "warps": "8",
        "stages": "3",
        "regs": "128",
        "spill": "-",
        "shared": "81.0/163",
        "progs": "2",  # by registers, and by 164 / (81 + 1) KiB
        "occ": "25%",
        "tensor": "HMMA 64",
        "copies": "LDGSTS 32",
        "ld": "16",
        "st": "4",
        "MFLOP": "156.0",
        "KiB": "2.0",
        "B/logit": "2",
        "bound us": "1.0",
    }
    assert "op N16: does not compile" in failed


def test_an_older_matrix_class_is_marked() -> None:
    assert "HMMA 64*" in table([reading(target="sm_90")])
    assert "*" not in table([reading(target="sm_80")]).partition("limits")[0]


def compile_nothing(
    configurations: Iterable[Configuration], jobs: int
) -> dict[Configuration, Compiled | str]:
    """As if all became the same good kernel for an A100."""
    return dict.fromkeys(configurations, GOOD)


def test_the_command_checks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_report, "compile_all", compile_nothing)
    assert main(["--check", "--targets", "sm_80"]) == 0
    assert "_linear_logsumexp_kernel" in capsys.readouterr().out
    # On AMD the same instructions are not what was asked for.
    assert main(["--check", "--targets", "gfx942"]) == 1
    assert "forms a product without MFMA" in capsys.readouterr().err
    assert main(["--targets", "gfx942"]) == 0


def test_only_all_covers_every_variant_and_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_report, "compile_all", compile_nothing)
    main([])
    few = capsys.readouterr().out
    main(["--all"])
    everything = capsys.readouterr().out
    assert "sm_100" in few and "sm_89" not in few and "uneven" not in few
    assert "sm_89" in everything and "uneven" in everything


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--targets", "sm_70"], "sm_90"),  # the choices are told
        (["--jobs", "0"], "must be positive, got 0"),
        (["--ops", "matmul"], "linear_logsumexp"),
    ],
)
def test_wrong_flags_are_usage_errors(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert complaint in capsys.readouterr().err
