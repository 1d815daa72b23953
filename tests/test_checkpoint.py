"""Checkpoints: what was written is what is read, damage is told, and bad input is refused."""

import json
import math
import os

import pytest
import torch
from checkpoints import assert_holds, files, tensor_file, tensors_of, write

from halfbridge.training import checkpoint
from halfbridge.training.checkpoint import CheckpointError


def test_the_newest_keep_are_left_and_read(tmp_path):
    folder = tmp_path / "made" / "if need be"
    assert checkpoint.steps(folder) == []
    for step in (0, 3, 10, 11):
        assert write(folder, step, keep=3) == folder / f"step-{step:09d}.json"
    assert checkpoint.steps(folder) == [3, 10, 11]
    assert len(files(folder)) == 6
    assert_holds(folder, 11)
    assert_holds(folder, 3, read=3)


def test_tensors_of_every_kind_come_back_bit_for_bit_on_their_own(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    given = {
        "strided": base.T[::2],
        "view": base[1],
        "view again": base[1],
        "whole": base,
        "empty": torch.zeros(0, 5, dtype=torch.int64),
        "0-dim": torch.tensor(math.pi, dtype=torch.float64),
        "bfloat16": torch.tensor([1.0, math.nan, -0.0], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "negated": torch.tensor([1 + 2j], dtype=torch.complex64).conj().imag,
        "expanded": torch.ones(1).expand(4),
    }
    checkpoint.write(tmp_path, given, {}, step=0)
    got = checkpoint.read(tmp_path).tensors
    assert got.keys() == given.keys()
    for name, want in given.items():
        want = want.detach().resolve_conj().resolve_neg().contiguous()
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape), name
        assert (
            got[name].numpy(force=True).tobytes() == want.numpy().tobytes()
            if name != "bfloat16"
            else torch.equal(got[name].view(torch.int16), want.view(torch.int16))
        ), name
    got["view"].zero_()
    assert got["view again"].sum() > 0
    assert got["whole"].sum() == base.sum()


def test_the_record_keeps_numbers_bit_for_bit_and_turns_tuples_into_lists(tmp_path):
    record = {
        "inf": [math.inf, -math.inf],
        "third": 1 / 3,
        "n": 2**70,
        "zero": -0.0,
        "none": None,
        "t": (1, (2,)),
        "é": "ü",
    }
    checkpoint.write(tmp_path, {}, {**record, "nan": math.nan}, step=0)
    back = checkpoint.read(tmp_path).record
    assert math.isnan(back.pop("nan"))
    assert back == {**record, "t": [1, [2]]}
    assert math.copysign(1.0, back["zero"]) == -1.0


def test_a_written_file_is_strict_json_that_others_can_read(tmp_path):
    path = checkpoint.write(tmp_path, tensors_of(1), {"loss": math.nan}, step=1)

    def refuse(token):
        raise AssertionError(token)

    manifest = json.loads(path.read_text(encoding="ascii"), parse_constant=refuse)["manifest"]
    assert manifest["tensors"] == {"w": ["float32", [3, 2]], "k": ["int64", []]}
    assert manifest["bytes"] == tensor_file(tmp_path, 1).stat().st_size


@pytest.mark.parametrize(
    ("tensors", "record", "message"),
    [
        ({}, {"a": [0, {"b": {1}}]}, r"record'\]\['a'\]\[1\]\['b'\] is a set"),
        ({}, {"a": torch.ones(1)}, "Tensor.*states.flatten"),
        ({}, {"a": {1: 2}}, "the key 1, which is not a string"),
        ({}, {"$float64": 1}, r"the key '\$float64'"),
        ({"a": 1.0}, {}, r"tensors\['a'\] is a float"),
        ({"a": torch.eye(2).to_sparse()}, {}, r"tensors\['a'\].*sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, {}, r"tensors\['a'\] is torch.complex128"),
        ({"a": torch.ones(2, device="meta")}, {}, "on meta"),
        ({"__metadata__": torch.ones(2)}, {}, "'__metadata__' is taken"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name_before_anything_is_written(tmp_path, tensors, record, message):
    with pytest.raises((TypeError, ValueError), match=message):
        checkpoint.write(tmp_path / "new", tensors, record, step=0)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [{"step": -1}, {"step": 1.0}, {"step": True}, {"step": 1, "keep": 0}])
def test_bad_steps_and_counts_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=[*options][-1]):
        checkpoint.write(tmp_path, {}, {}, **options)


def test_a_step_before_the_newest_is_refused_and_the_newest_can_be_written_again(tmp_path):
    write(tmp_path, 4)
    write(tmp_path, 8)
    with pytest.raises(ValueError, match=r"step = 6 is before the newest checkpoint.*step 8"):
        write(tmp_path, 6)
    checkpoint.write(tmp_path, {"other": torch.ones(1)}, {"second": True}, step=8)
    assert checkpoint.read(tmp_path).record == {"second": True}
    assert len(files(tmp_path)) == 4


def test_nothing_there_and_no_such_step_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.read(tmp_path / "none")
    write(tmp_path, 4)
    with pytest.raises(FileNotFoundError, match=r"step = 5 has no checkpoint.*there are 4"):
        checkpoint.read(tmp_path, 5)


def truncate(folder):
    path = tensor_file(folder, 2)
    os.truncate(path, path.stat().st_size - 1)


def flip(folder):
    path = tensor_file(folder, 2)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def swap(folder):
    tensor_file(folder, 2).write_bytes(tensor_file(folder, 1).read_bytes())


def edit(folder, change, sign=False):
    """Change the manifest's body; `sign` makes its own SHA-256 right again."""
    path = folder / "step-000000002.json"
    body = json.loads(path.read_text())["manifest"]
    change(body)
    if sign:
        path.write_bytes(checkpoint._manifest(body))
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "manifest": body}))


def replace(folder, data):
    (folder / "step-000000002.json").write_bytes(data)


DAMAGE = {
    "truncated": (truncate, "bytes and was written with"),
    "flipped": (flip, "SHA-256 is another"),
    "another's tensors": (swap, "SHA-256 is another"),
    "no tensors": (lambda f: tensor_file(f, 2).unlink(), "is missing"),
    "manifest edited": (lambda f: edit(f, lambda b: b["record"].update({"step was": 3})), "manifest|SHA-256"),
    "lies about shapes": (
        lambda f: edit(f, lambda b: b["tensors"]["w"].__setitem__(1, [2, 3]), True),
        r"'w' is .*\[2, 3\]",
    ),
    "lies about dtypes": (
        lambda f: edit(f, lambda b: b["tensors"]["k"].__setitem__(0, "int32"), True),
        "'k' is.*int32",
    ),
    "lies about names": (lambda f: edit(f, lambda b: b["tensors"].update(z=["bool", []]), True), "'z' is.*nothing"),
    "lies about steps": (lambda f: edit(f, lambda b: b.update(step=3), True), "renamed"),
    "points elsewhere": (lambda f: edit(f, lambda b: b.update(file="../x.safetensors"), True), "renamed"),
    "from the future": (lambda f: edit(f, lambda b: b.update(version=2), True), "version 2"),
    "lacks an entry": (lambda f: edit(f, lambda b: b.pop("bytes"), True), "bytes"),
    "garbage": (lambda f: replace(f, b"\x00\xff{"), "not a manifest"),
    "empty": (lambda f: replace(f, b""), "not a manifest"),
    "nested": (lambda f: replace(f, b"[" * 100000), "not a manifest"),
    "a list": (lambda f: replace(f, b"[]"), "not a manifest"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_and_never_read_past(name, tmp_path):
    damage, message = DAMAGE[name]
    write(tmp_path, 1)
    write(tmp_path, 2)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.read(tmp_path)
    assert f"step 2 in {tmp_path} is damaged" in str(error.value)
    assert "step=1" in str(error.value)
    assert_holds(tmp_path, 1, read=1)
    (tmp_path / "step-000000002.json").unlink()  # as the message says
    assert_holds(tmp_path, 1)
    write(tmp_path, 2)
    assert_holds(tmp_path, 2)
    assert len(files(tmp_path)) == 4


def test_damage_without_a_checkpoint_before_says_so(tmp_path):
    write(tmp_path, 2)
    flip(tmp_path)
    with pytest.raises(CheckpointError, match="none before it"):
        checkpoint.read(tmp_path)


def test_tensors_that_are_not_safetensors_are_refused_though_the_sums_are_right(tmp_path):
    pickled = b"\x80\x04\x95" + b"0" * 50
    name = f"step-000000002.{checkpoint.hashlib.sha256(pickled).hexdigest()[:16]}.safetensors"
    write(tmp_path, 2)
    (tmp_path / name).write_bytes(pickled)
    digest = checkpoint.hashlib.sha256(pickled).hexdigest()
    edit(tmp_path, lambda b: b.update(file=name, bytes=len(pickled), sha256=digest), True)
    with pytest.raises(CheckpointError, match="not safetensors"):
        checkpoint.read(tmp_path)
