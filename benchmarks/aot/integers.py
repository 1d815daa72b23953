"""Integer arithmetic of the IR on scalars (ints) and tiles (arrays of int64): what masks, loop bounds and addresses are
computed with. A pointer's value is the number of elements from where its argument points.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.aot.ir import OPERAND, Op

Value = Any  # int, or an array of int64; None: not known
TYPE = re.compile(r"(?:tensor<([\dx]+)x)?(i\d+|index|!tt\.ptr<\w+>)>?\s*$")
LITERAL = re.compile(r"^\s*(?:dense<)?(-?\d+|true|false)>?(?:\s*:|\s*$)")


def quotient(a: Value, b: Value) -> Value:
    """a / b rounded towards zero."""
    return abs(a) // abs(b) * np.where((a < 0) == (b < 0), 1, -1)


SIGNED: dict[str, Callable[[Value, Value], Value]] = {
    "addi": lambda a, b: a + b, "subi": lambda a, b: a - b, "muli": lambda a, b: a * b, "shli": lambda a, b: a << b,
    "andi": lambda a, b: a & b, "ori": lambda a, b: a | b, "xori": lambda a, b: a ^ b, "shrsi": lambda a, b: a >> b,
    "minsi": np.minimum, "maxsi": np.maximum, "divsi": quotient, "remsi": lambda a, b: a - b * quotient(a, b),
    "ceildivsi": lambda a, b: -quotient(-a, b), "slt": np.less, "sle": np.less_equal, "sgt": np.greater,
    "sge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "tt.addptr": lambda a, b: a + b,
}  # fmt: skip
UNSIGNED: dict[str, Callable[[Value, Value], Value]] = {
    "minui": np.minimum, "maxui": np.maximum, "divui": lambda a, b: a // b, "remui": lambda a, b: a % b,
    "shrui": lambda a, b: a >> b, "ceildivui": lambda a, b: -(-a // b), "ult": np.less, "ule": np.less_equal,
    "ugt": np.greater, "uge": np.greater_equal,
}  # fmt: skip


def compute(op: Op, known: dict[str, Value]) -> Value:
    """The value of an integer operation, None where it is a float or rests on something not known."""
    body, _, types = (
        op.text.partition(" : ") if op.kind != "tt.make_range" else (op.text, "", op.text.rsplit(" : ", 1)[-1])
    )
    found = TYPE.search(types)
    if op.kind == "arith.constant":
        literal = LITERAL.match(op.text)
        if literal is None or (types and found is None):
            return None
        number = {"true": 1, "false": 0}.get(literal[1]) if literal[1] in ("true", "false") else int(literal[1])
        return filled(number, found)
    if found is None:
        return None
    if op.kind == "tt.make_range":
        start, end = (int(re.findall(rf"{word} = (\d+)", op.text)[0]) for word in ("start", "end"))
        return np.arange(start, end, dtype=np.int64)
    values = [known.get(name) for name in OPERAND.findall(body)]
    if not values or any(value is None for value in values):
        return None
    return applied(op, body, values, found)


def applied(op: Op, body: str, values: list[Value], found: re.Match[str]) -> Value:
    width = int(found[2][1:]) if found[2][0] == "i" and found[2] != "index" else 64
    shape = tuple(int(n) for n in found[1].split("x")) if found[1] else ()
    name = op.kind.removeprefix("arith.")
    if name in ("extsi", "index_cast", "trunci"):
        return wrapped(values[0], width)
    if name == "extui":
        before = int(re.findall(r"i(\d+)>? to ", op.text)[0])
        return unsigned(values[0], before)
    if name == "select":
        return np.where(np.asarray(values[0]) != 0, values[1], values[2]) if shape else values[1 if values[0] else 2]
    if name == "tt.int_to_ptr":
        return filled(0, found)
    if name == "tt.splat":
        return filled(values[0], found)
    if name == "tt.expand_dims":
        return np.expand_dims(values[0], int(re.findall(r"axis = (\d+)", op.text)[0]))
    if name == "tt.broadcast":
        return np.broadcast_to(values[0], shape)
    if name == "tt.reshape":
        return np.reshape(values[0], shape)
    if name == "cmpi":
        name = body.split(",")[0].strip()
    if name in UNSIGNED:
        values = [unsigned(value, width) for value in values]
    function = (SIGNED | UNSIGNED).get(name)
    if function is None or any(value is None for value in values) or len(values) != 2:
        return None
    if name[:3] in ("div", "rem", "cei") and not np.all(values[1]):
        return None
    result = function(*values)
    return wrapped(result if shape else int(result), 1 if op.kind == "arith.cmpi" else width)


def filled(number: Value, found: re.Match[str] | None) -> Value:
    """The number as a scalar, or as a tile of the type's shape."""
    if found is None or not found[1]:
        return number
    return np.full([int(n) for n in found[1].split("x")], number, dtype=np.int64)


def wrapped(value: Value, width: int) -> Value:
    """In the range of signed integers of that width; one bit is 0 or 1."""
    if width == 1:
        return value & 1 if not isinstance(value, np.ndarray) else value.astype(np.int64) & 1
    if width >= 64:
        return value
    half = 1 << (width - 1)
    return ((value + half) & (2 * half - 1)) - half


def unsigned(value: Value, width: int) -> Value:
    """As unsigned integers of that width; None for 64-bit ones that need the top bit, which int64 has not."""
    if width < 64:
        return value & ((1 << width) - 1)
    return None if np.any(np.asarray(value) < 0) else value
