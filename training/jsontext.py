"""Plain values as JSON text that gives every number back bit for bit, infinities and NaNs too.

JSON has no word for a float64 that is not finite. Here it is {"$float64": "7ff0000000000000"}, its bits in hexadecimal.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, NoReturn

__all__ = ["dumps", "loads"]

NOT_FINITE = "$float64"


def dumps(value: Any, name: str = "value", *, indent: int | None = None) -> str:
    """`value` as ASCII JSON: None, booleans, integers, floats, strings, lists, and dicts whose keys are strings.

    Tuples are written as lists. `name` is what errors call the value. Raises TypeError for anything else, and
    ValueError for a dict with the key "$float64", which is taken.
    """
    separators = (",", ":") if indent is None else None
    return json.dumps(_plain(value, name), allow_nan=False, separators=separators, indent=indent)


def loads(text: str | bytes) -> Any:
    """The value that `dumps` wrote. ValueError for text that is not such JSON."""
    try:
        return json.loads(text, object_hook=_number, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {NOT_FINITE: struct.pack(">d", value).hex()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {key!r}, which is not a string; pass str(key), or states.flatten")
        if NOT_FINITE in value:
            raise ValueError(f"{name} has the key {NOT_FINITE!r}, which marks numbers that are not finite; rename it")
        return {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"{name} is a {type(value).__name__}, which JSON has not; pass a number, a string, a list or a dict of them "
        "(states.flatten takes tensors out)"
    )


def _number(pairs: dict[str, Any]) -> Any:
    if pairs.keys() != {NOT_FINITE}:
        return pairs
    bits = pairs[NOT_FINITE]
    if not isinstance(bits, str) or len(bits) != 16:
        raise ValueError(f"{bits!r} is not the bits of a float64")
    return struct.unpack(">d", bytes.fromhex(bits))[0]


def _refuse(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")
