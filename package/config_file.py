"""Config files, TOML or YAML: a table of a command's options, read as if they were written before those on the command line.

`save_every = 500` is `--save-every 500`, `betas = [0.9, 0.99]` is `--betas 0.9,0.99`, `classes = true` is `--classes` and
`classes = false` is `--no-classes`; a dash in a name is as good as an underscore.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbridge.parser import Parser, path
from halfbridge.solvers.nearest import nearest

__all__ = ["offer", "settable", "text", "write"]

OURS = ("help", "config", "save_config")


def offer(parser: Parser, *exclusive: tuple[str, ...]) -> None:
    """Give the parser --config FILE, whose options come before those that are given, so that the latter prevail, and
    --save-config, which `write` obeys. exclusive: options of which a given one also prevails over the file's others."""
    group = parser.add_argument_group("config file")
    group.add_argument(
        "--config",
        metavar="FILE",
        type=path,
        action="append",
        help="take options from FILE, .toml or .yaml: 'save_every = 500' there is --save-every 500 "
        "here; of several files the later prevail, and what is given here prevails over all (default: none)",
    )
    group.add_argument(
        "--save-config",
        metavar="FILE",
        type=path,
        help="write such a file of this command, .toml, in place of one that is there, and stop (default: run it)",
    )
    parser.set_defaults(parser=parser)
    parser.expand = functools.partial(_expand, parser, exclusive)


def settable(parser: Parser) -> dict[str, argparse.Action]:
    """What a file may set: the actions of all options by the name of their value."""
    return {a.dest: a for a in parser._actions if a.option_strings and a.dest not in OURS}


def write(options: argparse.Namespace) -> bool:
    """Whether the options asked for themselves, as a file, in place of a run."""
    if not options.save_config:
        return False
    parser: Parser = options.parser
    to = Path(options.save_config)
    if to.suffix != ".toml":
        raise ValueError(f"--save-config {to} must end in .toml")
    given = {name: getattr(options, name) for name in settable(parser)}
    values = {name: value for name, value in given.items() if value is not None}
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(f"# {parser.prog} --config THIS-FILE\n{text(values)}", encoding="utf-8")
    print(f"wrote {to}")
    return True


def text(values: Mapping[str, Any]) -> str:
    """The values as a TOML file has them."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _expand(parser: Parser, exclusive: tuple[tuple[str, ...], ...], arguments: list[str]) -> list[str]:
    finder = Parser(prog=parser.prog, add_help=False)
    finder.add_argument("--config", action="append", type=path, default=[])
    files = argparse.ArgumentParser.parse_known_args(finder, arguments)[0].config
    known, words = settable(parser), {word.partition("=")[0] for word in arguments}
    given = {name for name, action in known.items() if words & {*action.option_strings}}
    flags: list[str] = []
    for file in files:
        try:
            values = _named(known, _read(Path(file)), file)
        except (ValueError, OSError, ImportError) as error:
            parser.error(str(error))
        for group in exclusive:
            if given & {*group}:
                values = {name: value for name, value in values.items() if name not in group}
        try:
            flags += _flags(known, values, file)
        except ValueError as error:
            parser.error(str(error))
    return [*flags, *arguments]


def _named(known: Mapping[str, argparse.Action], values: Mapping[str, Any], file: str) -> dict[str, Any]:
    """By the name of the option's value, of which an option may have several."""
    names = {
        word[2:].replace("-", "_"): name for name, a in known.items() for word in a.option_strings if word[:2] == "--"
    }
    names = {name: name for name in known} | {k: v for k, v in names.items() if not k.startswith("no_")}
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = names.get(str(key).replace("-", "_"))
        if name is None:
            raise ValueError(f"{file}: there is no setting {key!r}; {nearest(key, names)}")
        if name in found:
            raise ValueError(f"{file}: {name!r} is there twice")
        found[name] = value
    return found


def _flags(known: Mapping[str, argparse.Action], values: Mapping[str, Any], file: str) -> list[str]:
    flags = []
    for name, value in values.items():
        try:
            flags += _flag(known[name], value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise ValueError(f"{file}: {name} = {_shown(value)}: {error}") from error
    return flags


def _read(file: Path) -> dict[str, Any]:
    suffix = file.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ValueError(f"{file} is no config file: its name must end in .toml, .yaml or .yml")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        body = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error
    values = _read_toml(body, file) if suffix == ".toml" else _read_yaml(body, file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}; it must hold lines such as 'steps: 1000'")
    return values


def _read_toml(body: str, file: Path) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ImportError(f"{file}: TOML needs tomli on Python 3.10: pip install 'halfbridge[train]'") from error
    try:
        return tomllib.loads(body)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not TOML: {error}") from error


def _read_yaml(body: str, file: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{file}: YAML needs PyYAML: pip install 'halfbridge[train]', or write TOML") from error
    try:
        tree = yaml.compose(body, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    try:
        return {} if tree is None else _plain(tree, file)
    except RecursionError as error:
        raise ValueError(f"{file}: a list holds itself") from error


def _plain(node: Any, file: Path) -> Any:
    """What a node of YAML holds: of numbers the words as they are written, as on a command line (010 is not 8)."""
    if node.id == "sequence":
        return [_plain(part, file) for part in node.value]
    if node.id == "mapping":
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                raise ValueError(
                    f"{file}: {key!r} is there twice" if isinstance(key, str) else f"{file}: a key is no word"
                )
        return {key.value: _plain(value, file) for key, value in node.value}
    kind = node.tag.rpartition(":")[2]
    if kind == "bool":
        return node.value.lower() in ("yes", "true", "on")
    return None if kind == "null" else node.value.replace(".inf", "inf") if kind == "float" else node.value


def _flag(action: argparse.Action, value: Any) -> list[str]:
    """The words of a command line that a value stands for. ValueError or ArgumentTypeError for a bad one."""
    if value is None:
        return []
    flag = next(option for option in action.option_strings if option.startswith("--"))
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ValueError("it must be true or false")
        return [flag if value else f"--no-{flag[2:]}"]
    if action.nargs == "?" and isinstance(value, bool):
        return [flag] if value else []
    word = ",".join(map(_word, value)) + "," * (len(value) == 1) if isinstance(value, list) else _word(value)
    if callable(action.type):
        action.type(word)
    if action.choices is not None and word not in action.choices:
        raise ValueError(f"there is no {word!r}; {nearest(word, list(action.choices))}")
    return [f"{flag}={word}"]


def _word(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{_shown(value)} is no number, string or list of them")
    return value if isinstance(value, str) else repr(value)


def _shown(value: Any) -> str:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
