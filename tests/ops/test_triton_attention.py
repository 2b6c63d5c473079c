from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.errors import MachineError, UsageError
from core.models.specs import SPECS
from core.ops import triton_attention
from core.ops.triton_attention import TritonSparseAttention
from tests.models.test_detector import small_detector

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What a kernel of the main job knows when it is compiled: 8 heads of 256 channels, 3 levels of 4 x 4 bins.
MAIN_JOB = {"NUM_HEADS": 8, "NUM_TOKENS": 48, "DIM": 256, "RESOLUTION": 4, "NUM_CELLS": 4}
BLOCKS = {"BLOCK_HEADS": 16, "BLOCK_TOKENS": triton_attention._BLOCK_TOKENS, "BLOCK_DIM": triton_attention._BLOCK_DIM}

without_gpu = pytest.mark.skipif(IS_INTERPRETED or torch.cuda.is_available(), reason="Triton runs here")


def test_equals_the_plain_attention_in_tritons_interpreter():
    """In a process of its own: the interpreter has to be asked for before Triton is imported."""
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("triton_in_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(IS_INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("kernel", ["score_tokens", "gather_tokens", "scatter_tokens"])
def test_kernels_compile_for_a_gpu(kernel, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from core.ops import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_kernels, kernel)
    known = {**MAIN_JOB, **BLOCKS}
    signature = {name: "constexpr" if name in known else "*fp32" for name in function.arg_names} | {"rows": "*i32"}
    source = ASTSource(function, signature, {(function.arg_names.index(name),): each for name, each in known.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 0
    # Every GPU has 48 kB for a block without being asked.
    assert compiled.metadata.shared <= 48 * 1024


@without_gpu
def test_it_is_refused_without_a_cuda_device():
    pytest.importorskip("triton")
    with pytest.raises(MachineError, match="no CUDA device") as caught:
        small_detector("de-detr", attention="triton")
    assert caught.value.where == "model.attention"
    assert "fast" in caught.value.hint


def test_it_is_refused_without_triton(monkeypatch):
    monkeypatch.delitem(sys.modules, "core.ops.triton_kernels", raising=False)
    monkeypatch.delattr("core.ops.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MachineError, match="Triton is not installed") as caught:
        TritonSparseAttention(4)
    assert "fast" in caught.value.hint


def test_it_is_never_chosen_unasked():
    for name in SPECS:
        detector = small_detector(name)
        chosen = [getattr(layer, "sparse_attention", None) for layer in detector.decoder.layers]
        assert not any(isinstance(attention, TritonSparseAttention) for attention in chosen)


def test_the_package_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import core.models.detector"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_crops_by_no_other_backend():
    with pytest.raises(UsageError, match="the triton attention does not crop by detectron2"):
        small_detector("de-detr", attention="triton", roi_backend="detectron2")
