"""Backends: which one runs, forcing one, refusing what cannot run, and not waiting for a compiler."""

import importlib.util
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from halfbridge.kernels import Noise, backend, combine, dispatch, normal, use

HAS_NUMBA = importlib.util.find_spec("numba") is not None
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_row_of_the_table_names_a_function() -> None:
    for kernel, name in dispatch.TABLE:
        if name == "reference" or importlib.util.find_spec(name) is not None:
            assert callable(dispatch.load(kernel, name))


def test_every_kernel_has_a_reference() -> None:
    assert {kernel for kernel, _ in dispatch.TABLE} == {k for k, name in dispatch.TABLE if name == "reference"}


def test_default_is_the_fastest_installed() -> None:
    assert backend() == ("numba" if HAS_NUMBA else "reference")
    assert backend(torch.device("meta")) == "reference"


@needs_numba
def test_use_nests_and_is_undone_after_an_error() -> None:
    with use("reference"):
        with use("numba"):
            assert backend() == "numba"
        assert backend() == "reference"
        with pytest.raises(KeyError), use("numba"):
            raise KeyError
        assert backend() == "reference"
    assert backend() == "numba"


def test_use_holds_for_its_thread_only() -> None:
    seen: list[str] = []
    before = backend()
    with use("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend()))
        thread.start()
        thread.join()
    assert seen == [before]


def test_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cuda' is no backend; pass one of reference, numba, triton"), use("cuda"):
        pass


@needs_triton
def test_triton_serves_gpus_and_on_the_cpu_only_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend("cuda") == "triton"  # conftest asks for the interpreter, which needs no driver
    with use("triton"):
        assert backend() == backend("cuda") == "triton"
        assert combine([torch.ones(1, 2)], [2.0]).tolist() == [[2.0, 2.0]]
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(RuntimeError, match="on the CPU; set TRITON_INTERPRET=1"):
            combine([torch.ones(1, 2)], [1.0])


@needs_triton
def test_triton_without_a_driver_leaves_gpus_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "driver_error", lambda: "Triton finds no driver: 0 active drivers")
    monkeypatch.setattr(dispatch, "_broken", set())
    assert backend("cuda") == "reference"
    with use("triton"), pytest.raises(RuntimeError, match="cannot run on cuda here: Triton finds no driver: 0 active"):
        backend("cuda")
    with pytest.warns(RuntimeWarning, match="'triton' backend is installed but cannot run here .*; the reference runs"):
        assert dispatch.resolve("normal", "cuda", torch.float32, 4) is dispatch.load("normal", "reference")
    assert "triton" not in dispatch.available()


@needs_triton
def test_a_driver_that_triton_does_not_find_is_said() -> None:
    code = """
from halfbridge.kernels import backend
from halfbridge.kernels.dispatch import driver_error
print(backend("cuda"), "|", driver_error())
"""
    name, reason = run_python(code, TRITON_INTERPRET="0").strip().split(" | ")
    assert (name == "triton") == (reason == "")
    assert torch.cuda.is_available() or "no driver" in reason


@needs_numba
def test_numba_is_refused_for_tensors_elsewhere() -> None:
    with use("numba"), pytest.raises(RuntimeError, match="'numba' was forced but the tensors are on meta"):
        combine([torch.ones(1, 2, device="meta")], [1.0])


@needs_numba
def test_a_dtype_that_numba_lacks_runs_the_reference_in_that_dtype() -> None:
    x = normal((30, 5), 1, dtype=torch.bfloat16)
    with use("numba"):
        compiled = combine([x, x], [0.3, 1.1])
    with use("reference"):
        assert torch.equal(compiled, combine([x, x], [0.3, 1.1]))
    assert compiled.dtype == torch.bfloat16


def test_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "found", lambda package: False)
    assert backend() == "reference"
    with (
        pytest.raises(RuntimeError, match="'numba': this backend is not installed; available here: reference"),
        use("numba"),
    ):
        pass


def test_a_package_that_fails_to_import_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kernel: str, name: str) -> Any:
        if name == "numba":
            raise ImportError("Numba needs NumPy 9.9 or less")
        return original(kernel, name)

    original = dispatch.load
    monkeypatch.setattr(dispatch, "load", fail)
    monkeypatch.setattr(dispatch, "found", lambda package: True)
    monkeypatch.setattr(dispatch, "_broken", set())
    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setattr(dispatch, "_spent", {("normal", "numba"): 1 << 40})
    with pytest.warns(RuntimeWarning, match=r"'numba' backend .* NumPy 9.9"):
        assert normal((2, 2), 1).shape == (2, 2)
    assert backend() == "reference"


def test_importing_the_kernels_and_small_requests_load_no_compiler() -> None:
    heavy = "{'numba', 'triton', 'scipy', 'llvmlite', 'matplotlib'}"
    code = f"""
import sys
from halfbridge.kernels import *
print({heavy} & set(sys.modules))
x = normal((64, 64), 0)
for draw in range(20):
    x = combine([x, x], [0.5, 0.5], noise=Noise(1.0, 0, draw))
print({{'numba', 'triton', 'llvmlite'}} & set(sys.modules))
"""
    assert run_python(code).split("\n")[:2] == ["set()", "set()"]


@needs_numba
@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("kernel", ["normal", "combine"])
def test_large_requests_and_much_eager_work_load_it(
    monkeypatch: pytest.MonkeyPatch, kernel: str, imported: bool
) -> None:
    entry = dispatch.TABLE[kernel, "numba"]
    cost = entry.load_cost // (dispatch.IMPORTED if imported else 1)
    monkeypatch.setattr(dispatch, "sys", SimpleNamespace(modules={"numba": None} if imported else {}))
    for elements in (cost, cost // 8, 1_000_000):
        monkeypatch.setattr(dispatch, "_loaded", {})
        monkeypatch.setattr(dispatch, "_spent", {})
        eager = 0
        while not dispatch.pays(kernel, "numba", elements):
            eager += 1
        assert eager == -(-cost // (elements + entry.call_cost)) - 1
    assert cost > 20 * entry.call_cost


@needs_numba
def test_select_names_the_backend_whose_function_it_gives() -> None:
    with use("numba"):
        name, run = dispatch.select("combine", "cpu", torch.float32)
        assert (name, run) == ("numba", dispatch.load("combine", "numba"))
        name, run = dispatch.select("combine", "cpu", torch.bfloat16)
        assert (name, run) == ("reference", dispatch.load("combine", "reference"))


@needs_numba
def test_threads_that_call_at_once_get_the_right_normals() -> None:
    with use("reference"):
        expected = [normal((3, 200_000), seed) for seed in range(4)]
    results: list[Any] = [None] * 4

    def work(seed: int) -> None:
        with use("numba"):
            results[seed] = normal((3, 200_000), seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_neither_hangs_nor_differs() -> None:
    code = """
import os, signal, torch
from halfbridge.kernels import normal, use
torch.set_num_threads(2)
with use("numba"):
    mine = normal((2, 400_000), 3)          # the pool of threads exists now
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = mine.numpy().tobytes() == normal((2, 400_000), 3).numpy().tobytes()  # torch.equal hangs: OpenMP
        os._exit(0 if same else 1)
    print(os.waitpid(child, 0)[1])
"""
    assert run_python(code).strip() == "0"


@needs_numba
def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_kernel() -> None:
    compiler = importlib.import_module("halfbridge.kernels.cpu.compiler")
    tried: list[bool] = []

    def build(cache: bool) -> Any:
        tried.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'kernel': no locator available")
        return "kernel"

    assert compiler.cached(build) == "kernel"
    assert tried == [True, False]


@needs_numba
@pytest.mark.parametrize("kernel", ["normal", "combine"])
def test_the_cache_key_changes_with_the_files_compiled_in(kernel: str) -> None:
    module = importlib.import_module(f"halfbridge.kernels.cpu.{kernel}")
    made = [module.build(torch.float32, text, cache=False) for text in ("one", "two")]
    assert [{cell.cell_contents for cell in k.py_func.__closure__} for k in made] == [{"one"}, {"two"}]


def test_noise_is_a_plain_named_tuple() -> None:
    assert Noise(0.5, 1, 2) == (0.5, 1, 2, 0)


@pytest.mark.parametrize("kernel", ["normal", "combine"])
def test_compiled_code_of_two_precisions_has_two_names(kernel: str) -> None:
    """Else code from the cache of an earlier process calls the other precision's, whose workspace has half the size."""
    pytest.importorskip("numba")
    module = importlib.import_module(f"halfbridge.kernels.cpu.{kernel}")
    narrow, wide = (module.compiled(dtype) for dtype in (torch.float32, torch.float64))
    stages = [name for name, stage in narrow.items() if hasattr(stage, "py_func")]
    assert stages
    for name in stages:
        assert narrow[name].py_func.__qualname__ != wide[name].py_func.__qualname__
