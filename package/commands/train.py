"""`halfbridge train`."""

from __future__ import annotations

from halfbridge.commands import train_bridge, train_sgm
from halfbridge.parser import Commands, Parser

__all__ = ["add"]


def add(commands: Commands) -> None:
    train = commands.add_parser("train", help="train networks on data, resumable, on one process or several")
    kinds = train.add_subparsers(required=True, metavar="what", parser_class=Parser)
    for kind in (train_sgm, train_bridge):
        kind.add(kinds)
