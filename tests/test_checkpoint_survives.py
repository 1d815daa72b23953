"""No moment of writing a checkpoint is bad to be killed or to run out of space: the newest whole one is there."""

import errno
import io
import os
import re
import subprocess
import sys

import pytest
import torch
from checkpoints import assert_holds, files, tensor_file, write

from halfbridge.training import checkpoint, durable


def test_what_a_killed_writer_left_is_not_read_and_the_next_write_removes_it_alone(tmp_path):
    write(tmp_path, 1)
    left = [
        "step-000000002.json.partial",
        f"step-000000002.{'a' * 16}.safetensors",
        f"step-000000001.{'b' * 16}.safetensors",
    ]
    mine = ["notes.txt", "mine.partial", "weights.safetensors", "step-2.json"]
    for name in left + mine:
        (tmp_path / name).write_bytes(b"half a fi")
    assert_holds(tmp_path, 1)
    write(tmp_path, 3)
    assert_holds(tmp_path, 3)
    assert set(files(tmp_path)) >= set(mine)
    assert not set(files(tmp_path)) & set(left)


class FullDisk:
    """The operating system's calls that a write makes, of which the n-th fails."""

    def __init__(self, monkeypatch, fails):
        self.calls, self.fails = 0, fails
        for module, name in ((os, "fsync"), (os, "replace")):
            monkeypatch.setattr(module, name, self.failing(getattr(module, name)))
        monkeypatch.setattr(durable, "open", self.open, raising=False)

    def failing(self, call):
        def called(*args):
            self.count()
            return call(*args)

        return called

    def count(self):
        self.calls += 1
        if self.calls == self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, path, mode):
        self.count()
        return HalfWritten(path, mode, self.count)


class HalfWritten(io.FileIO):
    """A file that has half of what is written when `then` is called."""

    def __init__(self, path, mode, then):
        super().__init__(path, mode)
        self.then = then

    def write(self, data):
        first = super().write(data[: len(data) // 2])
        self.then()
        return first + super().write(data[first:])


STAGES = (
    11  # two files of open, write, fsync, rename and the folder's fsync, then the folder's after the old are removed
)


@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
@pytest.mark.parametrize("stage", range(1, STAGES + 1))
def test_no_space_at_any_stage_leaves_a_whole_checkpoint_and_no_rubbish(tmp_path, monkeypatch, stage, again):
    write(tmp_path, 1)
    write(tmp_path, 2)
    before = files(tmp_path)
    step = 2 if again else 3
    new = {"w": torch.full((3, 2), 30.0), "k": torch.tensor(30)}
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, stage)
        with pytest.raises(OSError, match="No space left on device") as error:
            checkpoint.write(tmp_path, new, {"step was": 30}, step=step)
        assert disk.calls >= stage
    assert error.value.errno == errno.ENOSPC
    message = error.value.args[1]
    needed = int(re.search(r"needs (\d+) bytes", message)[1])
    assert f"the checkpoint of step {step} in {tmp_path}" in message
    assert "another folder" in message
    assert "\n" not in message
    if stage <= 9:  # the manifest's name is the commit
        assert files(tmp_path) == before
        assert_holds(tmp_path, 2)
        assert "the newest checkpoint there is step 2, whole" in message
    else:
        assert checkpoint.read(tmp_path).record == {"step was": 30}
    path = checkpoint.write(tmp_path, new, {"step was": 30}, step=step)
    assert needed == path.stat().st_size + tensor_file(tmp_path, step).stat().st_size
    assert checkpoint.read(tmp_path).record == {"step was": 30}
    assert len(files(tmp_path)) == 4


def test_the_stages_are_all_there_are(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, -1)
    write(tmp_path, 1)
    assert disk.calls == STAGES


def test_a_folder_that_cannot_be_written_to_is_told_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the checkpoint of step 1 in .*file.*needs \d+ bytes") as error:
        write(tmp_path / "file" / "folder", 1)
    assert error.value.errno == errno.ENOTDIR

    def refuse(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(durable, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match=r"Permission denied.*another folder.*no checkpoint there yet"):
        write(tmp_path / "new", 1)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from halfbridge.training import checkpoint

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
random.seed(7)
tensors = {"w": torch.zeros(200_000), "k": torch.tensor(0)}

def loop(first, ready):
    for step in range(first, first + 100_000):
        tensors["w"].fill_(step)
        tensors["k"].fill_(step)
        checkpoint.write(folder, tensors, {"step was": step}, step=step)
        if step == first:
            os.write(ready, b"x")

last, left = -1, 0
for _ in range(rounds):
    listen, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            loop(last + 1, ready)
        finally:
            os._exit(1)
    os.read(listen, 1)
    time.sleep(random.uniform(0.0, 0.04))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    os.close(listen), os.close(ready)
    found = checkpoint.read(folder)
    assert found.step > last, (found.step, last)
    assert found.record == {"step was": found.step}
    assert found.tensors["k"] == found.step and (found.tensors["w"] == found.step).all()
    for step in checkpoint.steps(folder):
        checkpoint.read(folder, step)
    left += len(list(folder.iterdir())) != 2 * len(checkpoint.steps(folder))
    last = found.step
checkpoint.write(folder, tensors, {}, step=last + 1)
print(last, left, len(list(folder.iterdir())))
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint_and_the_steps_only_grow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "15"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    last, left, count = map(int, done.stdout.split())
    assert last >= 14
    assert left > 0, "no kill met a write half done"
    assert count == 4
