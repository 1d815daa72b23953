"""One safetensors file that holds tensors and, in its header, a record with a SHA-256 of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from halfbridge.training import jsontext
from halfbridge.training.checkpoint import bytes_tensors, tensor_bytes
from halfbridge.training.durable import cannot_write, write_file

__all__ = ["read", "write"]

SUFFIX = ".safetensors"
FORMAT, VERSION = "halfbridge network", 1


def write(path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write the file whole or not at all. ValueError for a name that does not end in .safetensors or tensors that cannot be
    stored, TypeError for a config that is not JSON, OSError in one sentence where it cannot be written."""
    if path.suffix != SUFFIX:
        raise ValueError(f"path = {str(path)!r} must end in {SUFFIX}: pass {str(path.with_suffix(SUFFIX))!r}")
    text = jsontext.dumps({"format": FORMAT, "version": VERSION, **config}, "config")
    digest = _digest(tensor_bytes(tensors), text)
    data = tensor_bytes(tensors, {"halfbridge": text, "sha256": digest})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    except OSError as error:
        raise cannot_write(error, path.name, path.parent, len(data), "an older one was not changed") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(config, tensors). FileNotFoundError where there is none, ValueError for a file that is not what was written."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}; pass a run's folder, or a file that save wrote")
    data = path.read_bytes()
    try:
        tensors = bytes_tensors(data)
        metadata = _header(data).get("__metadata__", {})
        text = metadata.get("halfbridge")
        if text is None:
            raise ValueError("its tensors come without halfbridge's record; read them with safetensors.torch.load_file")
        if _digest(data, text) != metadata.get("sha256"):
            raise ValueError("it is not what was written: its SHA-256 is another")
        config = jsontext.loads(text)
        if (config["format"], config["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is {config['format']!r}, version {config['version']!r}, and not version {VERSION}")
    except ValueError as error:
        raise ValueError(f"{path} is not a network that save wrote, or is damaged: {error}") from error
    return config, tensors


def _header(data: bytes) -> dict[str, Any]:
    """The JSON that a safetensors file begins with; its length is the first 8 bytes."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def _digest(data: bytes, text: str) -> str:
    """SHA-256 of a safetensors file's tensors, their names, dtypes and shapes, and of the text beside them."""
    header = _header(data)
    header.pop("__metadata__", None)
    whole = hashlib.sha256(f"{text}\n{json.dumps(header, sort_keys=True)}\n".encode())
    whole.update(memoryview(data)[8 + int.from_bytes(data[:8], "little") :])
    return whole.hexdigest()
