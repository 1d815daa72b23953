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

from halfbridge.parser import Parser, nearest

__all__ = ["offer", "settable", "text", "write"]

OURS = ("help", "config", "save_config", "print_config")


def offer(parser: Parser) -> None:
    """Give the parser --config FILE, whose options come before those that are given, so that the latter prevail, and
    --save-config and --print-config, which `write` obeys."""
    group = parser.add_argument_group("config file")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="take options from FILE, .toml or .yaml: 'save_every = 500' there is --save-every 500 "
        "here, and what is given here prevails (default: none)",
    )
    group.add_argument(
        "--save-config", metavar="FILE", help="write such a file of this command, and stop (default: run it)"
    )
    group.add_argument("--print-config", action="store_true", help="print it as TOML, and stop")
    parser.set_defaults(parser=parser)
    parser.expand = functools.partial(_expand, parser)


def settable(parser: Parser) -> dict[str, argparse.Action]:
    """What a file may set: the actions of all options by the name of their value."""
    return {a.dest: a for a in parser._actions if a.option_strings and a.dest not in OURS}


def write(options: argparse.Namespace) -> bool:
    """Whether the options asked for themselves, as a file or on stdout, in place of a run."""
    if not (options.save_config or options.print_config):
        return False
    parser: Parser = options.parser
    given = {name: getattr(options, name) for name in settable(parser)}
    values = {name: value for name, value in given.items() if value is not None}
    head = f"# {parser.prog} --config THIS-FILE\n"
    if options.print_config:
        print(head + text(values, ".toml"), end="")
    if options.save_config:
        path = Path(options.save_config)
        body = head + text(values, path.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
        print(f"wrote {path}")
    return True


def text(values: Mapping[str, Any], suffix: str) -> str:
    """The values as a file of that suffix has them. ValueError for other suffixes than .toml, .yaml and .yml."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    if suffix in (".yaml", ".yml"):
        return str(_yaml(Path(f"a config{suffix}")).safe_dump(plain, sort_keys=False, allow_unicode=True, width=10_000))
    if suffix != ".toml":
        raise ValueError(f"a config file ends in .toml, .yaml or .yml, and this one in {suffix!r}")
    return "".join(f"{name} = {_toml(value)}\n" for name, value in plain.items())


def _expand(parser: Parser, arguments: list[str]) -> list[str]:
    finder = Parser(prog=parser.prog, add_help=False)
    finder.add_argument("--config")
    path = argparse.ArgumentParser.parse_known_args(finder, arguments)[0].config
    if path is None:
        return arguments
    try:
        values = _read(Path(path))
        return [*_flags(settable(parser), values, path), *arguments]
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def _flags(known: Mapping[str, argparse.Action], values: Mapping[str, Any], path: str) -> list[str]:
    seen, flags = set(), []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ValueError(f"{path}: there is no setting {key!r}{nearest(name, list(known))}")
        if name in seen:
            raise ValueError(f"{path}: {name!r} is there twice")
        seen.add(name)
        try:
            flags += _flag(known[name], value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise ValueError(f"{path}: {key} = {_shown(value)}: {error}") from error
    return flags


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _read(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ValueError(f"{path} is no config file: its name must end in .toml, .yaml or .yml")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    body = path.read_text(encoding="utf-8")
    values = _read_toml(body, path) if suffix == ".toml" else _read_yaml(body, path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; it must hold lines such as 'steps: 1000'")
    return values


def _read_toml(body: str, path: Path) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ImportError(f"{path}: TOML needs tomli on Python 3.10: pip install 'halfbridge[train]'") from error
    try:
        return tomllib.loads(body)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def _read_yaml(body: str, path: Path) -> Any:
    yaml = _yaml(path)
    try:
        tree = yaml.compose(body, Loader=yaml.SafeLoader)
        values = yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if isinstance(tree, yaml.MappingNode):  # of which PyYAML takes the last of two
        keys = [key.value for key, _ in tree.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{path}: {key!r} is there twice")
    return {} if values is None else values


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{path}: YAML needs PyYAML: pip install 'halfbridge[train]', or write TOML") from error
    return yaml


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
        raise ValueError(f"there is no {word!r}{nearest(word, list(action.choices))}")
    return [f"{flag}={word}"]


def _word(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{_shown(value)} is no number, string or list of them")
    return value if isinstance(value, str) else repr(value)


def _shown(value: Any) -> str:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
