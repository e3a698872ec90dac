"""Machine code as nvdisasm lists it: accesses to memory by width, and loads in flight."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence

Line = tuple[str, int]  # of a source: file, number


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction, without its predicate."""

    line: Line
    opcode: str  # LDG.E.128.CONSTANT
    operands: str  # R4, desc[UR4][R2.64+0x10]

    @property
    def name(self) -> str:
        """LDG of LDG.E.128.CONSTANT."""
        return self.opcode.partition(".")[0]

    @property
    def bits(self) -> int:
        """128 of LDG.E.128.CONSTANT, 16 of LDG.E.U16; without a suffix 32."""
        sizes = [
            int(part.lstrip("US")) for part in self.opcode.split(".") if re.fullmatch(r"[US]?(8|16)|64|128|256", part)
        ]
        return sizes[0] if sizes else 32


@dataclasses.dataclass(frozen=True)
class Code:
    """Instructions in the order of their addresses, and each loop as first and last of its own."""

    instructions: list[Instruction]
    loops: list[tuple[int, int]]


def parse(listing: str) -> Code:
    """What `nvdisasm -c -g` prints, as instructions; a loop is a branch backwards."""
    where, labels, loops = ("", 0), {}, []
    instructions: list[Instruction] = []
    for text in listing.splitlines():
        if found := re.match(r'\s*//## File "([^"]+)", line (\d+)', text):
            where = (found[1], int(found[2]))
        elif found := re.match(r"(\.L_\w+):", text):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*)", text):
            instructions.append(Instruction(where, found[1], found[2].strip()))
            target = re.search(r"`\((\.L_\w+)\)", found[2])
            if instructions[-1].name == "BRA" and target and target[1] in labels:
                loops.append((labels[target[1]], len(instructions) - 1))
    return Code(instructions, loops)


def widths(instructions: Iterable[Instruction], *names: str) -> dict[int, int]:
    """How many of the instructions of these names there are, by bits, widest first."""
    found = Counter(each.bits for each in instructions if each.name in names)
    return dict(sorted(found.items(), reverse=True))


def loads_in_flight(code: Code, lines: set[Line]) -> int:
    """The most loads of these source lines that a thread has issued and not waited for; where loops
    load, the least of the loops. A load of any width counts once.

    A load into registers (LDG) is waited for by the first instruction that names one of them. An
    asynchronous copy to shared memory (LDGSTS) belongs to the group that the next LDGDEPBAR closes;
    DEPBAR.LE SB0, n waits for all groups but the last n. What is issued before a loop for its first
    iterations counts for the loop, since it stands on the same line.
    """
    loops: list[set[Line]] = []
    for first, last in code.loops:
        here = {each.line for each in code.instructions[first : last + 1] if each.name in ("LDG", "LDGSTS")} & lines
        if here:
            loops.append(here)
    return min(_most_in_flight(code.instructions, each) for each in loops or [lines])


def _most_in_flight(instructions: Sequence[Instruction], lines: set[Line]) -> int:
    pending: list[set[int]] = []  # registers of each load
    groups, most = [0], 0  # copies of each group, the last one open
    for each in instructions:
        named = {int(number) for number in re.findall(r"\bR(\d+)", each.operands)}
        pending = [registers for registers in pending if not registers & named]
        if each.name == "LDGDEPBAR":
            groups.append(0)
        elif each.name == "DEPBAR" and (found := re.fullmatch(r"SB0, 0x([0-9a-f]+)", each.operands)):
            groups = groups[-1 - int(found[1], 16) :]
        elif each.line in lines and each.name == "LDG":
            first = int(re.findall(r"\bR(\d+)", each.operands)[0])
            pending.append(set(range(first, first + each.bits // 32)))
        elif each.line in lines and each.name == "LDGSTS":
            groups[-1] += 1
        most = max(most, len(pending) + sum(groups))
    return most
