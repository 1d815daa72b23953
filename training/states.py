"""Nested states, such as an optimiser's, taken apart into named tensors and JSON, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["check_same_tensors", "flatten", "unflatten"]

# What JSON has not is a dict with one of these keys; a dict of the user's that has a key beginning so is written as pairs.
TENSOR, TUPLE, PAIRS = "$tensor", "$tuple", "$dict"


def flatten(state: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """(tensors, record): the tensors of `state` by name, and all else as JSON values that name them.

    state: nested dicts (keys strings or integers), lists and tuples of tensors, numbers, strings, booleans and None. A
    tensor is named by the keys that lead to it, joined with "/": {"net": {"first.weight": w}} gives "net/first.weight".
    Floats may be infinite or NaN; `checkpoint.write` writes them bit for bit.

    The tensors are the state's own, detached and not copied. Two that share memory are two tensors, each with all its
    values: of a tied weight both names are there. Subclasses of dict and tuple come back as dict and tuple.
    Raises TypeError for anything else, naming its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _flatten(state, (), tensors)


def unflatten(tensors: Mapping[str, torch.Tensor], record: Any) -> Any:
    """The state that `flatten` took apart. Other tensors may be there too. ValueError for a record that is not flatten's."""
    if isinstance(record, list):
        return [unflatten(tensors, item) for item in record]
    if not isinstance(record, dict):
        return record
    if record.keys() == {TENSOR}:
        name = record[TENSOR]
        if name not in tensors:
            raise ValueError(f"the record names a tensor {name!r}, but there is none; pass the tensors saved with it")
        return tensors[name]
    if record.keys() == {TUPLE}:
        return tuple(unflatten(tensors, item) for item in record[TUPLE])
    if record.keys() == {PAIRS}:
        return {key: unflatten(tensors, item) for key, item in record[PAIRS]}
    for key in record:
        if key.startswith("$"):
            raise ValueError(
                f"the record has a dict with the key {key!r} beside others, which `flatten` does not write"
            )
    return {key: unflatten(tensors, item) for key, item in record.items()}


def check_same_tensors(there: Mapping[str, Any], module: torch.nn.Module, where: str, name: str) -> None:
    """ValueError, naming the first that differ, unless the state dict `there` has the names, shapes and dtypes of the
    module's. where: whose `there` is, "the network in runs/x"; name: what the module is called, "net"."""
    own = module.state_dict()
    wrong = [
        f"{key!r} is {_shown(there.get(key))} there and {_shown(own.get(key))} in {name}"
        for key in {**own, **there}
        if _shown(there.get(key)) != _shown(own.get(key))
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more differ" if len(wrong) > 3 else ""
        raise ValueError(
            f"{where} is of another architecture than {name}, a {type(module).__name__}: {'; '.join(wrong[:3])}{more}; pass "
            f"{name} as it was trained"
        )


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype)[6:]} {tuple(value.shape)}"
    return "absent" if value is None else type(value).__name__


def _flatten(value: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = _free_name("/".join(path) or "state", tensors)
        tensors[name] = value.detach()
        return {TENSOR: name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {TUPLE: [_flatten(item, (*path, str(i)), tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_flatten(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            if isinstance(key, bool) or not isinstance(key, (int, str)):
                raise TypeError(f"{_place(path)} has the key {key!r}; keys must be strings or integers")
            pairs.append([key, _flatten(item, (*path, str(key)), tensors)])
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {PAIRS: pairs}
    raise TypeError(
        f"{_place(path)} is a {type(value).__name__}; a state may hold tensors, numbers, strings, booleans and None, in "
        "dicts, lists and tuples: convert it to those"
    )


def _free_name(name: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """`name`, or with a number behind where the keys 1 and "1", or "a/b" and "a" then "b", lead to the same."""
    free, k = name, 1
    while free in tensors:
        k += 1
        free = f"{name}~{k}"
    return free


def _place(path: tuple[str, ...]) -> str:
    return f"state[{']['.join(map(repr, path))}]" if path else "state"
