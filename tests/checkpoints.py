"""Checkpoints whose values tell their step, and what is in their folder."""

import torch

from halfbridge.training import checkpoint


def tensors_of(step):
    return {"w": torch.full((3, 2), float(step)), "k": torch.tensor(step)}


def write(folder, step, **options):
    return checkpoint.write(folder, tensors_of(step), {"step was": step}, step=step, **options)


def assert_holds(folder, step, read=None):
    found = checkpoint.read(folder, read)
    assert found.step == step
    assert found.record == {"step was": step}
    assert found.tensors.keys() == {"w", "k"}
    assert all(torch.equal(found.tensors[n], t) for n, t in tensors_of(step).items())


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def tensor_file(folder, step):
    (found,) = folder.glob(f"step-{step:09d}.*.safetensors")
    return found
