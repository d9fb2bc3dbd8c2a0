"""Machine code is read as it is printed: short texts whose counts are plain to see."""

from __future__ import annotations

import pytest

from benchmarks.kernels.machine_code import Spills, read_amd, read_nvidia

SASS = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function _a_kernel:
  REG:40 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:576 TEXTURE:0 SURFACE:0 SAMPLER:0

\tcode for sm_90a
\t\tFunction : _a_kernel
        /*0000*/              LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                     /* 0x000fe20000000800 */
        /*0010*/         @P0  LDG.E.64 R2, desc[UR6][R2.64] ;        /* 0x000000ff12fc7431 */
        /*0020*/        @!P1  LDG.E.U16.CONSTANT R4, [R4.64] ;       /* 0x00000004ff107e19 */
        /*0030*/              LDGSTS.E.BYPASS.LTC128B.128 [R6], [R8.64] ;
        /*0040*/              HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0050*/              HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/              HMMA.1688.F32.TF32 R4, R8, R12, R4 ;
        /*0070*/       @!UPT  UTMALDG.2D [UR8], [UR4], desc[UR6] ;
        /*0080*/        @!PT  LDL.LU.64 R4, [R1+0x8] ;
        /*0090*/              STL [R1], R4 ;
        /*00a0*/              STL.64 [R1+0x8], R4 ;
        /*00b0*/              UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10] ;
        /*00c0*/              STG.E.U8 desc[UR6][R2.64], R4 ;
        /*10d0*/              LDS.128 R4, [R6] ;
"""


def test_sass_is_counted_by_class_whatever_its_predicates_and_modifiers() -> None:
    code = read_nvidia(SASS)
    assert code.registers == 40
    assert code.tensor_operations == {"HGMMA": 1, "HMMA": 2, "UTCHMMA": 1}
    assert code.copies == {"LDGSTS": 1, "UTMALDG": 1}
    assert code.widest_load_bytes == 16  # of LDGSTS: LDS and TMA are no loads of a lane
    assert code.widest_store_bytes == 1  # STG.E.U8, not STL.64


def test_stack_and_local_memory_are_spills_and_so_are_their_moves() -> None:
    spills = read_nvidia(SASS).spills
    assert spills == Spills(bytes=24, moves=3)
    assert str(spills) == "24 B, 3 moves"


@pytest.mark.parametrize(
    "instruction, width_bytes",
    [
        ("LDG.E R2, [R2.64]", 4),  # unsaid
        ("LDG.E.S8 R2, [R2.64]", 1),
        ("LDG.E.128.CONSTANT R4, [R2.64]", 16),
        ("LDG.E.ENL2.256 R4, R8, [R2.64]", 32),  # sm_100 alone
        ("LDGDEPBAR", 0),
    ],
)
def test_the_width_of_a_load_is_in_its_modifiers(instruction: str, width_bytes: int) -> None:
    text = f"REG:8 STACK:0 SHARED:0 LOCAL:0\n /*0000*/  {instruction} ;"
    code = read_nvidia(text)
    assert code.widest_load_bytes == width_bytes
    assert code.widest_store_bytes == 0
    assert code.spills == Spills() and not code.spills


def test_text_without_resource_usage_is_an_error() -> None:
    with pytest.raises(ValueError, match="no resource usage"):
        read_nvidia("cuobjdump fatal")


AMDGCN = """
_a_kernel:                              ; @_a_kernel
\ts_load_dwordx16 s[8:23], s[0:1], 0x0
\tbuffer_load_dwordx2 v[0:1], v2, s[4:7], 0 offen ; buffer_load_dwordx4 in a comment
\tglobal_load_ushort v3, v[4:5], off
\tbuffer_load_dword v2, s[4:7], 0 offen lds
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\tv_smfmac_f32_32x32x16_bf16 a[0:15], v[0:1], v[2:5], v6
\tds_read_b128 v[0:3], v4
\tscratch_store_dword off, v3, off offset:4
\tscratch_load_dwordx4 v[0:3], off, off
\tglobal_store_short v[4:5], v3, off
\tglobal_store_short_d16_hi v[4:5], v3, off
\ts_endpgm
\t\t.amdhsa_private_segment_fixed_size 20
; TotalNumVgprs: 339
amdhsa.kernels:
  - .agpr_count:     83
    .private_segment_fixed_size: 20
    .sgpr_count:     79
    .sgpr_spill_count: 3
    .vgpr_count:     339
    .vgpr_spill_count: 2
"""


def test_amd_assembly_is_counted_by_class() -> None:
    code = read_amd(AMDGCN)
    assert code.registers == 339  # vgpr_count: the 83 accumulation registers are in it
    assert code.tensor_operations == {"MFMA": 2, "SMFMAC": 1}
    assert code.copies == {"LOAD_LDS": 1}
    assert code.widest_load_bytes == 8  # scalar, LDS and scratch loads are not a lane's
    assert code.widest_store_bytes == 2


def test_amd_spills_are_scratch_bytes_its_moves_and_the_registers_spilled() -> None:
    spills = read_amd(AMDGCN).spills
    assert spills == Spills(bytes=20, moves=2, registers=5)
    assert str(spills) == "20 B, 5 registers"


def test_a_register_spilled_to_another_one_is_a_spill_too() -> None:
    text = AMDGCN.replace("fixed_size: 20", "fixed_size: 0").replace("scratch_", "v_")
    spills = read_amd(text).spills
    assert spills and spills.bytes == spills.moves == 0


def test_assembly_without_metadata_is_an_error() -> None:
    with pytest.raises(ValueError, match="no .vgpr_count"):
        read_amd("\ts_endpgm\n")
