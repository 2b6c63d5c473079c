"""What `diagnose` makes of a machine, a data set and packages, sound and broken."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from core import api
from core.doctor import devices, machine, operators, packages
from core.doctor.check import Check, Diagnosis, guarded
from core.doctor.datasets import look_at_dataset
from core.errors import DataError, MachineError
from tests.annotations.conftest import make_coco_layout


def by_name(checks: list[Check] | tuple[Check, ...]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_here_everything_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = by_name(api.diagnose().checks)
    for name in ("torch", "torchvision operators on cpu", "sparse attention on cpu", "other packages", "Python"):
        assert found[name].status == "ok", found[name]
    assert torch.__version__ in found["torch"].value
    assert str(tmp_path) in found["current folder"].value
    assert str(tmp_path / "runs") in found["runs"].value
    assert {"CPU", "CUDA", "memory", "timm", "RoIAlign of detectron2", "environment"} <= found.keys() | {"cuda:0"}
    assert all(check.hint for check in found.values() if check.status != "ok")
    assert list(tmp_path.iterdir()) == []


class FromRust(BaseException):
    """As the panics of extensions that are written in Rust."""


@pytest.mark.parametrize("error", [ImportError("no"), FromRust("panic\nat line 3"), SystemExit("enough"), OSError(5)])
def test_whatever_a_look_raises_is_a_line(error: BaseException) -> None:
    def look() -> Iterator[Check]:
        yield Check("first", "ok", "seen")
        raise error

    first, failed = guarded("second", look)
    assert first == Check("first", "ok", "seen")
    assert (failed.name, failed.status) == ("second", "fail")
    assert failed.value.startswith(type(error).__name__)
    assert "\n" not in failed.value
    assert failed.hint


def test_our_own_errors_keep_their_hints_and_ctrl_c_is_none_of_them() -> None:
    def refuse() -> Iterator[Check]:
        raise MachineError("is a file", where="runs", hint="move it")

    def interrupt() -> Iterator[Check]:
        raise KeyboardInterrupt

    assert guarded("runs", refuse) == [Check("runs", "fail", "runs: is a file", "move it")]
    with pytest.raises(KeyboardInterrupt):
        guarded("runs", interrupt)


def test_the_data_set_alone_decides_on_the_kind_of_error() -> None:
    fine, poor = Check("a", "ok", ""), Check("b", "warn", "", "hint")
    bad, bad_data = Check("c", "fail", "", "mend c"), Check("d", "fail", "", "mend d", about_data=True)
    assert Diagnosis((fine, poor)).error() is None
    for checks, kind, hint in (
        ((fine, bad_data), DataError, "mend d"),
        ((bad, bad_data), MachineError, "mend c"),
        ((poor, bad), MachineError, "mend c"),
    ):
        error = Diagnosis(checks).error()
        assert type(error) is kind
        assert error.hint == hint


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_coco_layout(tmp_path / "coco")


def test_splits_are_counted_and_images_looked_at(layout: Path) -> None:
    found = by_name(list(look_at_dataset(layout)))
    assert {check.status for check in found.values()} == {"ok"}
    for split in ("train", "val"):
        written = json.loads((layout / "annotations" / f"instances_{split}2017.json").read_text())
        counts = f"{len(written['images'])} images, {len(written['annotations'])} boxes"
        assert found[f"data, {split}"].value.startswith(counts)


def test_a_split_that_cannot_be_used_fails_and_the_other_is_told(layout: Path) -> None:
    shutil.rmtree(layout / "val2017")
    (layout / "val2017").mkdir()
    found = by_name(guarded("data", partial(look_at_dataset, layout), about_data=True))
    assert found["data, train"].status == "ok"
    assert found["data, val"].status == "fail"
    assert found["data, val"].about_data
    assert "val2017" in found["data, val"].value


def test_no_data_set_is_an_error_of_the_data(tmp_path: Path) -> None:
    (failed,) = guarded("data", partial(look_at_dataset, tmp_path / "nowhere"), about_data=True)
    assert failed.status == "fail"
    assert failed.about_data
    assert "prepare-data" in (failed.hint or "")


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    (failed,) = guarded("runs", partial(machine.look_at_folder, "runs", tmp_path / "runs"))
    assert failed.status == "fail"
    assert "is a file" in failed.value
    (found,) = machine.look_at_folder("runs", tmp_path / "new" / "folder")
    assert "can be written" in found.value
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_little_space_and_little_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is enough is raised here until this machine has too little."""
    monkeypatch.setattr(machine, "_ENOUGH_DISK", 1 << 62)
    assert [check.status for check in machine.look_at_folder("runs", tmp_path)] == ["warn"]
    monkeypatch.setattr(machine, "_LEAST_DISK", 1 << 62)
    assert [check.status for check in machine.look_at_folder("runs", tmp_path)] == ["fail"]
    if Path("/dev/shm").is_dir():
        monkeypatch.setattr(machine, "_ENOUGH_SHARED_MEMORY", 1 << 62)
        shared = by_name(list(machine.look_at_memory()))["shared memory"]
        assert shared.status == "warn"
        assert "--workers 0" in (shared.hint or "")


def write_package(folder: Path, name: str, version: str, *needs: str) -> None:
    """Write what Python reads of an installed package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")


def test_torchvision_of_another_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "torchvision", "0.1", "torch==1.2.3")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = packages.look_at_torchvision()
    assert found.status == "warn"
    assert "torch ==1.2.3" in found.value
    assert torch.__version__ in found.value
    shutil.rmtree(tmp_path / "torchvision-0.1.dist-info")
    write_package(tmp_path, "torchvision", "0.1", f"torch (=={torch.__version__.partition('+')[0]})")
    (found,) = packages.look_at_torchvision()
    assert found.status == "ok"


def test_packages_that_are_missing_or_too_old_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(
        tmp_path, "dedetr", "9", "torch>=99", "numpy>=99", "nowhere_to_be_found>=1", "scipy", "wandb; extra=='x'"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = by_name(list(packages.look_at_requirements()))
    assert found.keys() == {"numpy", "nowhere_to_be_found", "other packages"}
    assert found["numpy"].value == f"is {importlib.metadata.version('numpy')}, and must be >=99"
    assert found["nowhere_to_be_found"].value == "is not installed"
    assert found["nowhere_to_be_found"].hint == "python -m pip install 'nowhere_to_be_found>=1'"
    assert found["other packages"].value.startswith("1,")
    (torch_line,) = packages.look_at_torch()
    assert torch_line.status == "fail"
    assert ">=99" in torch_line.value


def test_optional_packages_are_told_with_the_line_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_EXTRAS", {"more": ("nowhere_to_be_found", "more"), "old": ("numpy", "numbers")})
    write_package(tmp_path, "dedetr", "9", "numpy>=99; extra == 'old'")
    monkeypatch.syspath_prepend(tmp_path)
    absent, old = packages.look_at_extras()
    assert absent.status == "ok"
    assert "python -m pip install 'dedetr[more]'" in absent.value
    assert old.status == "warn"
    assert old.hint == "python -m pip install 'dedetr[old]'"


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", None), ("150000 100000", 1), ("400000 100000\n", 4), ("5 100", 1), ("", None)]
)
def test_quotas_of_containers(tmp_path: Path, content: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert devices._cores_of_quota(tmp_path / "cpu.max") == cores
    (tmp_path / "cpu.cfs_quota_us").write_text("-1" if cores is None else content.split()[0])
    (tmp_path / "cpu.cfs_period_us").write_text((content.split() or ["100000"])[-1])
    assert devices._cores_of_quota(tmp_path / "cpu.cfs_quota_us") == cores


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(devices.usable_cores() + 1)
        (found,) = devices.look_at_cpu()
    finally:
        torch.set_num_threads(threads)
    assert found.status == "warn"
    assert f"OMP_NUM_THREADS={devices.usable_cores()}" in (found.hint or "")
    assert 1 <= devices.usable_cores() <= (os.cpu_count() or 1)


def test_operators_that_are_wrong_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.ops.nms.batched_nms", lambda boxes, *_: torch.arange(len(boxes)))
    (nms,) = operators.look_at_operators()
    assert (nms.status, nms.value) == ("fail", "NMS keeps boxes [0, 1, 2] instead of [0, 2]")
    monkeypatch.undo()
    align = operators._roi_align_error
    monkeypatch.setattr("core.ops.roi_pool.SAMPLING_RATIO", 1)
    assert align("torchvision", "cpu") < 1e-9  # a ramp's mean does not tell how often it was sampled
    monkeypatch.setattr("core.ops.roi_pool.roi_align", lambda level, *_, **__: level.new_zeros(1, 1, 2, 2))
    (crops,) = operators.look_at_operators()
    assert crops.status == "fail"
    assert "RoIAlign is wrong by 3.5" in crops.value


@pytest.mark.parametrize("wrong", [0.001, float("nan")])
def test_attention_that_differs_fails(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    monkeypatch.setattr("core.ops.absorbed_attention.finite_boxes", lambda boxes: boxes + wrong)
    (found,) = operators.look_at_attention()
    assert found.status == "fail"
    assert "model.attention=plain" in (found.hint or "")


@pytest.fixture
def detectron2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a package of this name in the place of an installed one, with this code in its layers."""
    folder = tmp_path / "detectron2"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
            del sys.modules[name]

    def write(code: str) -> None:
        forget()
        (folder / "layers.py").write_text(code)
        importlib.invalidate_caches()

    yield write
    forget()


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        ("raise ImportError('libcudart.so.9 is missing')", "warn", "libcudart.so.9"),
        ("class ROIAlign:\n def __init__(*_, **__): pass\n def __call__(self, level, rois): return 0", "warn", "wrong"),
        (
            "from torchvision.ops import RoIAlign as ROIAlign",
            "ok",
            "what torchvision's gives",
        ),
    ],
    ids=["broken", "wrong", "sound"],
)
def test_detectron2_is_called_where_it_is_installed(
    detectron2: Callable[[str], None], code: str, status: str, word: str
) -> None:
    detectron2(code)
    (found,) = operators.look_at_roi_backends()
    assert (found.status, word in found.value) == (status, True), found
    assert found.hint or status == "ok"


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is not None, reason="detectron2 is installed")
def test_without_detectron2_the_line_says_how_to_get_it() -> None:
    (found,) = operators.look_at_roi_backends()
    assert found.status == "ok"
    assert "pip install 'git+https" in found.value
