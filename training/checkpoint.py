"""Checkpoints: a folder of training states of which the newest whole one can always be read.

The checkpoint of step 12 is two files: step-000000012.<digest>.safetensors holds the tensors, and step-000000012.json, the
manifest, says what they are, with their SHA-256 and its own. Tensors are written first and the manifest last, each whole or
not at all, so that a checkpoint begins to exist when its manifest's name does; older ones are removed after that. Nothing is
pickled: what is read is JSON and safetensors, and neither can run code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfbridge.training import jsontext
from halfbridge.training.durable import PARTIAL, cannot_write, sync_folder, write_file

__all__ = ["Checkpoint", "CheckpointError", "read", "steps", "write"]

MANIFEST = re.compile(r"step-(\d{9,})\.json")
TENSORS = re.compile(r"step-(\d{9,})\.[0-9a-f]{16}\.safetensors")
FORMAT, VERSION = "halfbridge checkpoint", 1
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64),
)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that is not what was written."""


class Checkpoint(NamedTuple):
    """What `write` was given: the tensors on the CPU, the record, and the step."""

    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]
    step: int


def write(
    folder: str | PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    *,
    step: int,
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep`; returns the manifest's path.

    tensors: by name; any device and strides, dense, of the dtypes that safetensors has. Each is stored with all its
    values: two that share memory come back as two. record: JSON values; floats keep their bits, infinite and NaN ones
    too, and tuples become lists. folder: made if need be, and written to by one process at a time.

    A process killed at any moment leaves the checkpoints before, or this one too. What such a process left unfinished is
    removed by the next write. `keep` + 1 checkpoints must fit on the disk. The step of the newest one may be written
    again, and is replaced.

    Raises OSError when the folder cannot be written to or has no space, in one sentence that names the bytes needed, the
    checkpoints there unharmed; ValueError for a step below the newest one's, and for tensors that cannot be stored.
    """
    folder = Path(folder)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step = {step!r} must be an integer, 0 or more")
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise ValueError(f"keep = {keep!r} must be an integer, at least 1: the checkpoint itself is one of them")
    data = tensor_bytes(tensors)
    digest = hashlib.sha256(data).hexdigest()
    stem = f"step-{step:09d}"
    named = f"{stem}.{digest[:16]}.safetensors"
    manifest = _manifest(
        {
            "format": FORMAT,
            "version": VERSION,
            "step": step,
            "file": named,
            "bytes": len(data),
            "sha256": digest,
            "tensors": _shapes(tensors),
            "record": record,
        }
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if step < max(steps(folder), default=step):
            raise ValueError(
                f"step = {step} is before the newest checkpoint in {folder}, step {steps(folder)[-1]}; to go on from an "
                "earlier one delete the manifests (step-*.json) after it, or write to another folder"
            )
        _clean(folder)
        write_file(folder / named, data)
        write_file(folder / f"{stem}.json", manifest)
        for old in steps(folder)[:-keep]:
            (folder / f"step-{old:09d}.json").unlink()
        sync_folder(folder)
        _clean(folder)
    except OSError as error:
        raise cannot_write(
            error, f"the checkpoint of step {step}", folder, len(data) + len(manifest), _left(folder)
        ) from error
    return folder / f"{stem}.json"


def steps(folder: str | PathLike[str]) -> list[int]:
    """The steps that have a checkpoint in the folder, ascending; none where there is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(found[1]) for path in folder.iterdir() if (found := MANIFEST.fullmatch(path.name)))


def read(folder: str | PathLike[str], step: int | None = None) -> Checkpoint:
    """The checkpoint of `step`, default the newest. All of it is compared with what the manifest says first.

    Raises FileNotFoundError where there is none, and CheckpointError, a ValueError, for one that is damaged: it says how,
    and which one is before it. Another one is never read in its place.
    """
    folder = Path(folder)
    there = steps(folder)
    if not there:
        raise FileNotFoundError(
            f"there is no checkpoint in {folder}: no file step-*.json; pass the folder it was written to"
        )
    if step is None:
        step = there[-1]
    elif step not in there:
        raise FileNotFoundError(f"step = {step} has no checkpoint in {folder}; there are {', '.join(map(str, there))}")
    manifest = folder / f"step-{step:09d}.json"
    try:
        return _read(manifest, step)
    except (ValueError, KeyError, TypeError) as error:
        before = [other for other in there if other < step]
        remedy = (
            f"the checkpoint before is step={before[-1]}: pass that to read it, and delete {manifest.name} to go on from it"
            if before
            else "there is none before it: restore the folder from a copy, or start again"
        )
        raise CheckpointError(f"the checkpoint of step {step} in {folder} is damaged: {error}; {remedy}") from error


def tensor_bytes(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The tensors as a safetensors file. ValueError for names, dtypes and layouts that it has not."""
    import safetensors.torch

    stored: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"a tensor is named {name!r}; names must be strings, and '__metadata__' is taken")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{name!r}] is a {type(tensor).__name__}; put what is not a tensor into the record")
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
            raise ValueError(
                f"tensors[{name!r}] is {tensor.dtype}, {tensor.layout} on {tensor.device.type}, which cannot be stored; "
                f"pass a dense tensor with values, of one of {', '.join(str(d)[6:] for d in DTYPES)}"
            )
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    return safetensors.torch.save(stored, metadata)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    return {name: [str(tensor.dtype)[6:], list(tensor.shape)] for name, tensor in tensors.items()}


def _manifest(body: dict[str, Any]) -> bytes:
    text = jsontext.dumps(body, "manifest")
    return f'{{"sha256":"{hashlib.sha256(text.encode()).hexdigest()}",\n"manifest":{text}}}\n'.encode()


def _body(path: Path) -> dict[str, Any]:
    """What a manifest says, once its own SHA-256 is right."""
    try:
        whole = json.loads(path.read_bytes())
        text = json.dumps(whole["manifest"], separators=(",", ":"), allow_nan=False)
        right = hashlib.sha256(text.encode()).hexdigest() == whole["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a manifest ({type(error).__name__}: {error})") from error
    if not right:
        raise ValueError(f"{path.name} is not what was written: its SHA-256 is another")
    body: dict[str, Any] = jsontext.loads(text)
    return body


def _read(manifest: Path, step: int) -> Checkpoint:
    body = _body(manifest)
    if body.get("format") != FORMAT or body.get("version") != VERSION:
        raise ValueError(
            f"{manifest.name} says {body.get('format')!r}, version {body.get('version')!r}, and this halfbridge reads "
            f"{FORMAT!r}, version {VERSION}"
        )
    named = body["file"]
    if body["step"] != step or not TENSORS.fullmatch(named) or not named.startswith(f"{manifest.stem}."):
        raise ValueError(f"{manifest.name} is of step {body['step']} with the tensors {named!r}: it was renamed")
    try:
        data = manifest.with_name(named).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{named} is missing") from None
    if len(data) != body["bytes"]:
        raise ValueError(f"{named} has {len(data)} bytes and was written with {body['bytes']}")
    if hashlib.sha256(data).hexdigest() != body["sha256"]:
        raise ValueError(f"{named} is not what was written: its SHA-256 is another")
    tensors = bytes_tensors(data)
    if (shapes := _shapes(tensors)) != body["tensors"]:
        names = [n for n in {**body["tensors"], **shapes} if shapes.get(n) != body["tensors"].get(n)]
        said, found = (d.get(names[0], "nothing") for d in (body["tensors"], shapes))
        raise ValueError(f"{manifest.name} says that {names[0]!r} is {said}, and {named} holds {found}")
    return Checkpoint(tensors, body["record"], step)


def bytes_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. ValueError for bytes that are not one."""
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"these bytes are not safetensors ({error})") from error


def _clean(folder: Path) -> None:
    """Remove what was never finished, and tensors that no manifest names."""
    for path in folder.iterdir():
        name = path.name.removesuffix(PARTIAL)
        if not (found := TENSORS.fullmatch(name)) and not MANIFEST.fullmatch(name):
            continue
        if name != path.name or (found and not _named(folder / f"step-{found[1]}.json", name)):
            path.unlink()


def _named(manifest: Path, name: str) -> bool:
    """Whether the manifest names these tensors; if it cannot be read it may."""
    if not manifest.exists():
        return False
    try:
        return bool(_body(manifest)["file"] == name)
    except ValueError:
        return True


def _left(folder: Path) -> str:
    """After a failed write: remove what it left, and say what is there."""
    try:
        _clean(folder)
        there = steps(folder)
    except OSError:
        return "no checkpoint was changed"
    return f"the newest checkpoint there is step {there[-1]}, whole" if there else "there is no checkpoint there yet"
