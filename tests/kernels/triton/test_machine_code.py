"""What is read from a listing of nvdisasm."""

import pytest

from sprfast.kernels.triton import machine_code

MAP, OTHER = ("norm.py", 10), ("norm.py", 11)
# Two groups of two copies ahead, then a loop that waits for one and issues the next.
AHEAD = """
\t//## File "norm.py", line 10
        /*0100*/              @!P4 LDGSTS.E.BYPASS.128 [R5], desc[UR10][R18.64] ;
        /*0110*/                   LDGSTS.E.BYPASS.128 [R5+0x800], desc[UR10][R20.64], !P3 ;
        /*0120*/                   LDGDEPBAR ;
        /*0130*/                   LDGSTS.E.BYPASS.128 [R5+0x1000], desc[UR10][R18.64], !P4 ;
        /*0140*/                   LDGSTS.E.BYPASS.128 [R5+0x1800], desc[UR10][R20.64], !P3 ;
        /*0150*/                   LDGDEPBAR ;
.L_x_0:
        /*0160*/                   DEPBAR.LE SB0, 0x1 ;
        /*0170*/                   LDS.128 R16, [R20] ;
        /*0180*/                   LDGSTS.E.BYPASS.128 [R59], desc[UR10][R36.64], P4 ;
        /*0190*/                   LDGSTS.E.BYPASS.128 [R59+0x800], desc[UR10][R36.64], P6 ;
        /*01a0*/                   LDGDEPBAR ;
        /*01b0*/               @P6 BRA `(.L_x_0) ;
        /*01c0*/                   DEPBAR.LE SB0, 0x0 ;
"""
# A loop whose two loads share their registers, after three that do not.
SERIAL = """
\t//## File "norm.py", line 11
        /*0100*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0110*/                   LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0120*/                   LDG.E.128 R12, desc[UR4][R2.64+0x20] ;
        /*0130*/                   FADD R20, R5, R11 ;
.L_x_3:
\t//## File "norm.py", line 10
        /*0140*/               @P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0150*/                   FADD R20, R20, R7 ;
        /*0160*/              @!P1 LDG.E.128.CONSTANT R4, desc[UR4][R2.64+0x10] ;
        /*0170*/                   FADD R20, R20, R7 ;
        /*0180*/               @P2 BRA `(.L_x_3) ;
.L_x_4:
        /*0190*/                   BRA `(.L_x_4);
"""


@pytest.mark.parametrize(
    ("listing", "lines", "expected"),
    [
        pytest.param(AHEAD, {MAP}, 4, id="copies"),
        pytest.param(SERIAL, {MAP}, 1, id="one-register-set"),
        pytest.param(SERIAL, {OTHER}, 3, id="no-loop"),
        pytest.param(SERIAL, {MAP, OTHER}, 1, id="what-stands-before-a-loop-does-not-count"),
        pytest.param(AHEAD + SERIAL, {MAP}, 4, id="line-in-two-loops"),
        pytest.param(AHEAD.replace("line 10", "line 11") + SERIAL, {MAP, OTHER}, 1, id="least-of-two-loops"),
        pytest.param(AHEAD, set(), 0, id="none"),
    ],
)
def test_loads_in_flight(listing, lines, expected):
    assert machine_code.loads_in_flight(machine_code.parse(listing), lines) == expected


def test_widths():
    opcodes = [
        "LDG.E.128.CONSTANT",
        "LDG.E.U16",
        "LDG.E.ENL2.256",
        "LDG.E",
        "LDG.E.64",
        "STG.E.128",
        "LDGSTS.E.BYPASS.LTC128B.128",
    ]
    instructions = [machine_code.Instruction(MAP, opcode, "") for opcode in opcodes]
    assert machine_code.widths(instructions, "LDG") == {256: 1, 128: 1, 64: 1, 32: 1, 16: 1}
    assert machine_code.widths(instructions, "LDGSTS") == {128: 1}
