"""Things written as text: `dpm3`, `DDIM(eta=0.5)`, `unet(width=32, attention=(16, 8))`, `denoising(weighting=min_snr(gamma=3))`.

A name is looked up without regard to case, "-" or "_". Arguments are given as Python takes them, by name or in order. Values are
Python literals; a bare word is a string, and a word with arguments is a `Call` again.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from halfbridge.solvers.nearest import fold, nearest

__all__ = ["Call", "bind", "call", "find", "parameters", "plain", "takes", "usage"]


class Call(NamedTuple):
    """A name, its arguments by name, and those before them that have none."""

    name: str
    arguments: dict[str, Any]
    values: tuple[Any, ...] = ()


def call(text: str, kind: str) -> Call:
    """`name`, or `name(argument=value, ...)`; a name may be a path. kind: what it names, for errors, which are ValueErrors."""
    text = text.strip()
    if not text:
        raise ValueError(f"{kind} has an empty name; write 'name' or 'name(argument=value, ...)'")
    if not text.endswith(")"):
        return Call(text, {})
    opened = (k for k, letter in enumerate(text) if letter == "(")
    name, tree = next(((text[:k].strip(), tree) for k in opened if (tree := _tree(text[k:]))), ("", None))
    if tree is None or any(keyword.arg is None for keyword in tree.keywords):
        raise ValueError(f"{kind} {text!r} cannot be read; write 'name' or 'name(argument=value, ...)'")
    return _call(name, tree, f"{kind} {text!r}")


def find(name: str, known: Iterable[str], kind: str) -> str:
    """The known name that is meant. ValueError, with the nearest, if none is."""
    names = [*known]
    found = {fold(one): one for one in names}.get(fold(name))
    if found is None:
        raise ValueError(f"there is no {kind} {name!r}; {nearest(name, names)}")
    return found


def bind(
    maker: Callable[..., Any],
    given: Call,
    kind: str,
    without: Collection[str] = (),
    make: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """The call's arguments by name, as `maker` takes them; not those of `without`, which are not the user's to give.

    make: what becomes of a `Call`, or of a bare word where the maker takes no string.
    ValueError, naming argument and value, for one that there is not, that is missing, or whose value is of another kind.
    """
    what = f"{kind} {given.name!r}"
    known = {name: p for name, p in parameters(maker).items() if name not in without}
    named = {name: p for name, p in known.items() if p.kind is not p.VAR_KEYWORD}
    places = [name for name, p in named.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(given.values) > len(places):
        shown = repr(given.values[len(places)])
        raise ValueError(
            f"{what} has an argument without a name, {shown}; it takes {usage(given.name, maker, without)}"
        )
    arguments = dict(zip(places, given.values, strict=False))
    for name, value in given.arguments.items():
        if name in arguments:
            raise ValueError(f"{what} is given {name} twice")
        if name not in named and len(named) == len(known):
            hint = nearest(name, named) if named else "it takes none"
            raise ValueError(f"{what} has no argument {name!r}; {hint}")
        arguments[name] = value
    for name, parameter in named.items():
        if name not in arguments:
            if parameter.default is parameter.empty:
                raise ValueError(f"{what} lacks {name}, which has no default; write {given.name}({name}=...)")
            continue
        value, hint = arguments[name], parameter.annotation
        inner = Call(value, {}) if isinstance(value, str) and not takes(hint, value) else value
        if make is not None and isinstance(inner, Call) and takes(hint, inner):
            arguments[name] = make(inner)
        elif hint not in (Any, inspect.Parameter.empty) and not takes(hint, value):
            raise ValueError(f"{what}: {name} = {_shown(value)} must be {_said(hint)}")
    return arguments


def parameters(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments by name, each annotation evaluated where it was written: a dataclass's bases may be in other modules."""
    written = getattr(maker, "func", maker)  # of a partial
    if isinstance(written, type) and not dataclasses.is_dataclass(written):
        written = written.__init__  # type: ignore[misc]
    hints = get_type_hints(written)
    return {
        name: parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in inspect.signature(maker).parameters.items()
    }


def plain(value: Any) -> Any:
    """The value with {"type": "min_snr", "gamma": 3} in place of a `Call`, as descriptions have it. ValueError for a call with
    arguments that have no names."""
    if isinstance(value, Call):
        if value.values:
            raise ValueError(
                f"{value.name}({value.values[0]!r}): an argument has no name; write {value.name}(name=value)"
            )
        return {"type": value.name} | {name: plain(one) for name, one in value.arguments.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def takes(hint: Any, value: Any) -> bool:
    """Whether a literal, or a `Call`, is of the kind that an annotation says. Any and none say nothing of strings."""
    if hint is Any or hint is inspect.Parameter.empty:
        return not isinstance(value, str)
    if get_origin(hint) in (Union, types.UnionType):
        return any(takes(part, value) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if get_origin(hint) in (list, tuple, Sequence):
        return isinstance(value, list) and _take_all(get_origin(hint), get_args(hint), value)
    return isinstance(value, (Call, Mapping))


def usage(name: str, maker: Callable[..., Any], without: Collection[str] = ()) -> str:
    """`name(argument=default, ...)`."""
    parameters = [
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={_shown(parameter.default)}"
        for parameter in inspect.signature(maker).parameters.values()
        if parameter.name not in without and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return f"{name}({', '.join(parameters)})" if parameters else name


def _take_all(origin: Any, hints: tuple[Any, ...], values: list[Any]) -> bool:
    if origin is tuple and Ellipsis not in hints:
        return len(values) == len(hints) and all(map(takes, hints, values))
    return all(takes(hints[0], value) for value in values)


SAID = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", type(None): "None"}


def _said(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(said for part in get_args(hint) if (said := _said(part))))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (list, tuple, Sequence):
        return "a list"
    return SAID.get(hint, "a name with arguments")


def _shown(value: Any) -> str:
    """As it is written."""
    if isinstance(value, Call):
        named = [f"{name}={_shown(one)}" for name, one in value.arguments.items()]
        return f"{value.name}({', '.join([*map(_shown, value.values), *named])})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return value if isinstance(value, str) and value.isidentifier() else repr(value)


def _tree(arguments: str) -> ast.Call | None:
    """`f(...)`; None where the parentheses do not begin and end the text as one pair."""
    try:
        tree = ast.parse(f"f{arguments}", mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return None
    return tree if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) else None


def _call(name: str, tree: ast.Call, what: str) -> Call:
    arguments = {str(keyword.arg): _value(keyword.value, what) for keyword in tree.keywords}
    return Call(name, arguments, tuple(_value(value, what) for value in tree.args))


def _value(node: ast.expr, what: str) -> Any:
    if isinstance(node, ast.Name):
        return float("inf") if node.id == "inf" else node.id
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(part, what) for part in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
        return _call(node.func.id, node, what)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            f"{what}: {ast.unparse(node)!r} is not a literal; write a number, a list, a word or a quoted string"
        ) from None
