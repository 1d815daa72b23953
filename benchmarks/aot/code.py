"""What the readers of machine code hand on: instructions and where control goes after each."""

from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction. flow: "next", "jump", "call", "return" or "exit"; target: index of the one jumped to or called.

    conditional: control may also go on with the next instruction.
    """

    op: str  # with its modifiers
    flow: str = "next"
    target: int = -1
    conditional: bool = False


class Access(NamedTuple):
    """A load or store: "global", "local" (spills and arrays that left the registers) or "shared"; bytes a thread."""

    space: str
    write: bool
    bytes: int


class Resources(NamedTuple):
    """What a kernel takes: registers of a thread, bytes of stack or scratch of a thread, bytes of shared memory of a block."""

    registers: int
    stack: int
    shared: int
