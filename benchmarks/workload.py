"""A case made real: model, images, and the step to repeat; its time and its memory."""

from __future__ import annotations

import ctypes
import gc
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cases import Case, Machine
from core.annotations.records import Category
from core.assembly import Assembly, assemble
from core.config.schema import Config
from core.datasets.batches import Batch, collate
from core.datasets.dataset import Sample
from core.datasets.transforms import Normalisation
from core.device import place
from core.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from core.models.specs import get_spec
from core.processes import Processes
from core.structures import Target
from core.trainer.device import reproducible
from core.trainer.precision import MixedPrecision
from core.trainer.step import Stepper
from published_way import published_optimizer, published_way

NUM_CLASSES = 20
NUM_OBJECTS = 8
_MIB = 2**20


def build_assembly(case: Case, machine: Machine) -> Assembly:
    """Return the case's model and criterion; every way has the same random weights, frozen as the paper's are."""
    settings = get_spec(case.model).config_defaults()
    settings["model"] |= {
        "num_queries": case.num_queries,
        "num_encoder_layers": machine.num_layers,
        "num_decoder_layers": machine.num_layers,
        "roi_resolution": case.roi_resolution,
        "attention": "fast" if case.way == "published" else case.way,
    }
    settings["backbone"] = {
        "name": machine.backbone, "weights": None, "norm": "frozen_batch_norm", "freeze_stem": True
    }  # fmt: skip
    settings["run"] = {"device": machine.device, "precision": machine.precision}
    classes = [Category(label, f"class {label}") for label in range(NUM_CLASSES)]
    assembly = assemble(Config.model_validate(settings), classes)
    if case.way == "published":
        assembly = published_way(assembly)
        assembly.model.to(machine.device)
    else:
        place(assembly.model, torch.device(machine.device))
    return assembly


def build_batch(case: Case) -> Batch:
    """Return random images with random boxes, on the host, as the data loader hands them over."""
    generator = torch.Generator().manual_seed(case.batch_size)
    samples = []
    for number in range(case.batch_size):
        height, width = case.size_hw
        if case.is_padded and number > 0:
            height, width = height * 3 // 4, width * 3 // 4
        centres = torch.rand(NUM_OBJECTS, 2, generator=generator) * 0.6 + 0.2
        sizes = torch.rand(NUM_OBJECTS, 2, generator=generator) * 0.35 + 0.05
        labels = torch.randint(NUM_CLASSES, (NUM_OBJECTS,), generator=generator)
        samples.append(
            Sample(
                pixels=torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator),
                target=Target(torch.cat([centres, sizes], dim=1), labels),
                image_id=number,
                original_size_hw=(height, width),
                normalisation=Normalisation(IMAGENET_MEAN, IMAGENET_STD),
            )
        )
    return collate(samples)


def build_stepper(case: Case, machine: Machine) -> Stepper:
    """Return what makes the case's training steps: the trainer's own, in the published way with a plain AdamW."""
    # A folder that only a loss that is not finite would need, and end the benchmark.
    folder = Path(tempfile.gettempdir())
    stepper = Stepper(build_assembly(case, machine), torch.device(machine.device), folder, Processes())
    if case.way == "published":
        stepper.optimizer = published_optimizer(stepper.optimizer)
    stepper.train()
    return stepper


def build(case: Case, machine: Machine) -> Callable[[], Any]:
    """Return the case as a function to call again and again.

    A training step begins with the data loader's bytes on the host, all else with images on the device.
    """
    device = torch.device(machine.device)
    batch = build_batch(case)
    if case.work == "train":
        stepper = build_stepper(case, machine)
        if machine.device == "cuda":
            batch = batch.pin_memory()
        num_steps = 0

        def step() -> object:
            nonlocal num_steps
            num_steps += 1
            return stepper.step([batch], num_steps - 1, 0, 1000)

        return step
    model = build_assembly(case, machine).model
    images = batch.to(device).images
    precision = MixedPrecision(machine.precision, device)
    if case.work == "infer":
        model.eval()

        def infer() -> object:
            with torch.inference_mode(), precision.autocast():
                return model(images)

        return infer
    assert case.work == "encode"
    model.train()
    # A mere sum has no gradient behind a layer norm.
    weights: dict[torch.Size, Tensor] = {}

    def encode() -> None:
        model.zero_grad(set_to_none=True)
        with precision.autocast():
            encoded = model.encode(images)
        total = torch.zeros((), device=device)
        for level in (encoded.memory, *encoded.pyramid.features):
            if level.shape not in weights:
                weights[level.shape] = torch.randn(level.shape[1:], device=device)
            total = total + (level * weights[level.shape]).sum()
        total.backward()

    return encode


def time_cases(
    cases: dict[str, Case], machine: Machine, rounds: int, max_seconds: float = float("inf")
) -> dict[str, list[float]]:
    """Return the seconds of each case in each round, the cases by turns, after one call of each that does not count.

    Args:
        cases: by name.
        machine: how they are run.
        rounds: at most; the first is always made.
        max_seconds: begin no further round after these.
    """
    calls = {name: build(case, machine) for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with as_trained(machine):
        for call in calls.values():
            call()
        began = time.monotonic()
        while len(seconds[next(iter(cases))]) < rounds:
            for name, call in calls.items():
                seconds[name].append(time_call(call, machine))
            if time.monotonic() - began > max_seconds:
                break
    return seconds


@contextmanager
def as_trained(machine: Machine) -> Iterator[None]:
    """Work as the trainer does: on a CPU with deterministic algorithms; and with the threads that are asked for."""
    if machine.num_threads is not None:
        torch.set_num_threads(machine.num_threads)
    with reproducible(torch.device(machine.device)):
        yield


def time_call(call: Callable[[], Any], machine: Machine) -> float:
    """Return the seconds of a call, with all that it leaves the device to do."""
    gc.collect()
    _synchronize(machine)
    start = time.perf_counter()
    call()
    _synchronize(machine)
    return time.perf_counter() - start


def measure_memory(case: Case, machine: Machine) -> dict[str, float]:
    """Return the memory of two calls of a case, in MiB; to be called in a fresh process.

    Returns:
        `process`: the most that the process held during the calls, with Python, PyTorch and the model. `work`: how much
        more that is than it held before them, which is what activations, gradients and optimizer take. On a GPU both
        are of PyTorch's allocator.
    """
    call = build(case, machine)
    gc.collect()
    if machine.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / _MIB
    else:
        _return_free_memory()
        before = _resident_mib("VmRSS")
        # Restarts the kernel's count of the peak: building the model must not hide that of the work.
        Path("/proc/self/clear_refs").write_text("5")
    with as_trained(machine):
        for _ in range(2):
            call()
    peak = torch.cuda.max_memory_allocated() / _MIB if machine.device == "cuda" else _resident_mib("VmHWM")
    return {"process": peak, "work": peak - before}


def _synchronize(machine: Machine) -> None:
    if machine.device == "cuda":
        torch.cuda.synchronize()


def _return_free_memory() -> None:
    """Hand freed memory back to the kernel, where the C library can: what is free is not in use before the work."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident_mib(name: str) -> float:
    """Read VmRSS, the resident memory, or VmHWM, its peak."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
