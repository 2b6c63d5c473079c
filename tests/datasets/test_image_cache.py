from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from core.annotations.records import AnnotationSet, ImageRecord
from core.config.schema import DataConfig
from core.datasets import image_cache
from core.datasets.batches import Batch
from core.datasets.dataset import DetectionDataset
from core.datasets.image_cache import ImageCache, free_memory
from core.datasets.loaders import EvalLoader, TrainLoader
from core.errors import DataError
from tests.datasets.scenes import CLASSES, eval_transform, make_scene, train_transform


def config(num_workers: int = 0, batch_size: int = 2, **more: Any) -> DataConfig:
    return DataConfig(short_side=48, max_long_side=90, batch_size=batch_size, num_workers=num_workers, **more)


def dataset(annotations: AnnotationSet, root: Path, *, cached: bool = True, train: bool = True) -> DetectionDataset:
    transform = train_transform(config()) if train else eval_transform(config())
    made = DetectionDataset(annotations, root, CLASSES, transform, seed=1, drop_crowds=True)
    if cached:
        made.cache = ImageCache(annotations.images)
    return made


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.image_ids == b.image_ids
    assert a.sizes_hw == b.sizes_hw
    assert torch.equal(a.pixels, b.pixels)
    for target_a, target_b in zip(a.targets, b.targets, strict=True):
        assert torch.equal(target_a.boxes_cxcywh_norm, target_b.boxes_cxcywh_norm)
        assert torch.equal(target_a.labels, target_b.labels)


def remove_images(root: Path) -> None:
    for file in root.glob("*.png"):
        file.unlink()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_are_the_same_and_files_are_read_once(tmp_path: Path, num_workers: int) -> None:
    annotations = make_scene(tmp_path)
    plain = TrainLoader(dataset(annotations, tmp_path, cached=False), config(), seed=2)
    expected = [batch for epoch in range(3) for (batch,) in plain.epoch(epoch)]
    cached_set = dataset(annotations, tmp_path)
    cached = TrainLoader(cached_set, config(num_workers), seed=2)
    first = [batch for (batch,) in cached.epoch(0)]
    remove_images(tmp_path)
    rest = [batch for epoch in (1, 2) for (batch,) in cached.epoch(epoch)]  # workers find what the others have read
    for a, b in zip(first + rest, expected, strict=True):
        assert_equal(a, b)
    assert cached_set[7, 3].pixels.shape[0] == 3  # and so does this process
    cached.close()
    for a, (b,) in zip(expected, cached.epoch(0), strict=False):  # and new workers
        assert_equal(a, b)


def test_evaluation_batches_are_the_same(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    expected = list(EvalLoader(dataset(annotations, tmp_path, cached=False, train=False), config()))
    cached = EvalLoader(dataset(annotations, tmp_path, train=False), config(num_workers=1))
    for number in range(2):
        for a, b in zip(cached, expected, strict=True):
            assert_equal(a, b)
        if number == 0:
            remove_images(tmp_path)


def test_an_image_that_comes_several_times_an_epoch_is_the_same(tmp_path: Path) -> None:
    """Two workers may then read it at the same time."""
    annotations = make_scene(tmp_path, 2)
    settings = {"batch_size": 1, "sample_repeat": 6}
    plain = TrainLoader(dataset(annotations, tmp_path, cached=False), config(**settings), seed=2)
    cached = TrainLoader(dataset(annotations, tmp_path), config(num_workers=2, **settings), seed=2)
    for (a,), (b,) in zip(cached.epoch(0), plain.epoch(0), strict=True):
        assert_equal(a, b)


def test_workers_that_are_spawned_share_it_too(tmp_path: Path) -> None:
    program = f"""
        import multiprocessing
        from pathlib import Path
        from tests.datasets import test_image_cache as this

        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            root = Path({str(tmp_path / "images")!r})
            annotations = this.make_scene(root)
            expected = [batch for (batch,) in this.TrainLoader(
                this.dataset(annotations, root, cached=False), this.config(), seed=2).epoch(0)]
            cached_set = this.dataset(annotations, root)
            loader = this.TrainLoader(cached_set, this.config(num_workers=1), seed=2)
            for (a,), b in zip(loader.epoch(0), expected, strict=True):
                this.assert_equal(a, b)
            loader.close()
            this.remove_images(root)
            alone = this.TrainLoader(cached_set, this.config(), seed=2)
            for (a,), b in zip(alone.epoch(0), expected, strict=True):
                this.assert_equal(a, b)
            print("equal")
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command,
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_the_same_error_and_is_not_kept(tmp_path: Path, num_workers: int) -> None:
    annotations = make_scene(tmp_path)
    path = tmp_path / annotations.images[3].file_name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    errors = []
    cached = dataset(annotations, tmp_path, train=False)
    for made in (dataset(annotations, tmp_path, cached=False, train=False), cached, cached):
        with pytest.raises(DataError, match="image id 103") as caught:
            list(EvalLoader(made, config(num_workers)))
        errors.append((str(caught.value), caught.value.where, caught.value.hint))
    assert errors[0] == errors[1] == errors[2]
    path.write_bytes(whole)
    assert len(list(EvalLoader(cached, config(num_workers)))) == 3


def test_nothing_is_kept_before_memory_is_reserved(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    made = dataset(annotations, tmp_path)
    made[0, 0]
    remove_images(tmp_path)
    with pytest.raises(DataError, match="missing"):
        made[0, 0]


def test_images_lie_apart_and_augmentation_leaves_them_as_they_are(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    made, plain = dataset(annotations, tmp_path), dataset(annotations, tmp_path, cached=False)
    assert made.cache is not None
    made.cache.reserve()
    assert made.cache.num_bytes == sum(3 * image.width * image.height for image in annotations.images)
    for epoch, index in itertools.product(range(6), range(6)):
        assert torch.equal(made[epoch, index].pixels, plain[epoch, index].pixels)
    for index in range(6):
        assert torch.equal(made.cache.get(index, made._decoded), plain._decoded(index))


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="needs Linux")
def test_the_whole_of_free_memory_is_told() -> None:
    available = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    assert 0 < free_memory() <= available * 1.2


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/job/step\n", "job/step/memory.max"),
        ("0::/job/step\n", "job/memory.max"),
        ("5:cpu,cpuacct:/x\n4:memory:/job/step\n", "memory/job/memory.limit_in_bytes"),
        ("4:memory:/\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_limits_of_containers_and_jobs_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, file: str
) -> None:
    (tmp_path / "own").write_text(own)
    limit = tmp_path / "cgroup" / file
    limit.parent.mkdir(parents=True)
    monkeypatch.setattr(image_cache, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(image_cache, "_CGROUPS", tmp_path / "cgroup")
    limit.write_text("12345\n")
    assert free_memory() == 12345
    usage = limit.with_name("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
    usage.write_text("12000\n")
    assert free_memory() == 345
    limit.with_name("memory.stat").write_text("active_file 7\ninactive_file 5\n")
    assert free_memory() == 350
    usage.write_text("20000\n")
    assert free_memory() == 0
    limit.write_text("max\n")
    assert free_memory() > 12345


def test_sets_larger_than_memory_are_no_fault_until_reserved() -> None:
    cache = ImageCache([ImageRecord(number, "a.png", 8000, 8000) for number in range(2000)])
    assert cache.num_bytes == 2000 * 192_000_000
