from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from core.annotations.records import AnnotationSet
from core.config.schema import DataConfig
from core.datasets.batches import Batch, EvalBatches, TrainBatches, collate, pad_images
from core.datasets.dataset import DetectionDataset
from core.datasets.loaders import EvalLoader, TrainLoader, _say_unless_parent_is_gone, data_worker_errors
from core.datasets.transforms import Normalisation
from core.errors import DataError, MachineError, UsageError
from tests.datasets.scenes import CLASSES, eval_transform, make_scene, train_transform


def _config(batch_size: int = 2, num_workers: int = 0) -> DataConfig:
    return DataConfig(short_side=48, max_long_side=90, batch_size=batch_size, num_workers=num_workers)


def _train_set(annotations: AnnotationSet, root: Path) -> DetectionDataset:
    return DetectionDataset(annotations, root, CLASSES, train_transform(_config()), seed=1, drop_crowds=True)


def _eval_set(annotations: AnnotationSet, root: Path) -> DetectionDataset:
    return DetectionDataset(annotations, root, CLASSES, eval_transform(_config()), seed=1, drop_crowds=True)


def _assert_equal_steps(a: list[Batch], b: list[Batch]) -> None:
    for micro_a, micro_b in zip(a, b, strict=True):
        _assert_equal(micro_a, micro_b)


def _assert_equal(a: Batch, b: Batch) -> None:
    assert a.image_ids == b.image_ids
    assert torch.equal(a.pixels, b.pixels)
    assert a.sizes_hw == b.sizes_hw
    assert a.normalisation == b.normalisation
    assert torch.equal(a.original_sizes_hw, b.original_sizes_hw)
    for target_a, target_b in zip(a.targets, b.targets, strict=True):
        assert torch.equal(target_a.boxes_cxcywh_norm, target_b.boxes_cxcywh_norm)
        assert torch.equal(target_a.labels, target_b.labels)


def test_padding_is_zero_at_the_bottom_and_right() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, 9), (7, 3), (7, 9))
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]
    padded = pad_images(images)
    assert padded.shape == (3, 7, 9, 3)
    assert padded.dtype == torch.uint8
    for row, image in enumerate(images):
        height, width = image.shape[-2:]
        assert torch.equal(padded[row, :height, :width].permute(2, 0, 1), image)
        assert not padded[row, height:].any()
        assert not padded[row, :, width:].any()


def test_a_batch_is_normalised_and_its_padding_has_the_mean_colour_not_black(tmp_path: Path) -> None:
    """Zeros come after the normalisation, so that black pixels and padding differ."""
    annotations = make_scene(tmp_path)
    dataset = _eval_set(annotations, tmp_path)
    samples = [dataset[0, index] for index in range(6)]
    images = collate(samples).images
    assert images.sizes_hw.tolist() == [list(sample.pixels.shape[1:]) for sample in samples]
    assert images.padding_mask.any()
    padded = images.pixels.permute(0, 2, 3, 1)[images.padding_mask]
    assert (padded == 0).all()
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in samples[0].normalisation)
    for row, sample in enumerate(samples):
        height, width = sample.pixels.shape[1:]
        inside = torch.zeros(images.padding_mask.shape[1:], dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(images.padding_mask[row], ~inside)
        assert torch.equal(images.pixels[row, :, :height, :width], (sample.pixels.float() - mean) / std)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 3, 1, 3), (2, 1, 5, 3), (3, 4, 7, 3)])
def test_every_byte_is_normalised_by_its_own_channel(shape: tuple[int, ...]) -> None:
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (0.5, 0.25, 0.0), (1.0, 0.5, 0.125)
    normalised = Normalisation(mean, std).apply(pixels)
    expected = (pixels.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    assert normalised.shape == (shape[0], 3, *shape[1:3])
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(normalised.double(), expected.permute(0, 3, 1, 2), atol=1e-5)


def test_collate_keeps_the_order_and_the_original_sizes(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    dataset = _train_set(annotations, tmp_path)
    batch = collate([dataset[0, index] for index in (4, 2, 0)]).to(torch.device("cpu"))
    assert len(batch) == 3
    assert batch.image_ids == (104, 102, 100)
    records = [annotations.images[index] for index in (4, 2, 0)]
    assert batch.original_sizes_hw.tolist() == [[record.height, record.width] for record in records]
    assert [len(target) for target in batch.targets][1] == 0


def test_epoch_order_is_a_permutation_of_seed_and_epoch() -> None:
    batches = TrainBatches(11, 3, seed=5)
    assert len(batches) == 3
    epochs = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        epochs.append(list(batches))
        assert all(key[0] == epoch for batch in epochs[-1] for key in batch)
        assert [len(batch) for batch in epochs[-1]] == [3, 3, 3]  # the last incomplete batch is left out
    indices = [[index for batch in epoch for _, index in batch] for epoch in epochs]
    assert len(set(indices[0])) == 9
    assert indices[0] == indices[2] != indices[1]
    other_seed = [index for batch in TrainBatches(11, 3, seed=6) for _, index in batch]
    assert other_seed != indices[0]
    batches.start_step = 2
    assert list(batches) == epochs[0][2:]


@pytest.mark.parametrize(("num_images", "batch_size", "sizes"), [(1, 4, [1]), (3, 4, [3]), (4, 4, [4]), (9, 4, [4, 4])])
def test_fewer_images_than_one_batch_still_train(num_images: int, batch_size: int, sizes: list[int]) -> None:
    batches = TrainBatches(num_images, batch_size, seed=0)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (5, 1)])
def test_f69_parts_together_see_the_images_of_one_process_in_each_step(world_size: int, accumulate: int) -> None:
    """Also where they cannot all have equally many."""
    one = list(TrainBatches(19, 5, seed=3))
    ranks = [list(TrainBatches(19, 5, 3, rank, world_size, accumulate)) for rank in range(world_size)]
    for step, whole in enumerate(one):
        of_step = [micro for rank in ranks for micro in rank[step * accumulate : (step + 1) * accumulate]]
        assert sorted(key for micro in of_step for key in micro) == sorted(whole)
        sizes = [len(micro) for micro in of_step]
        assert max(sizes) - min(sizes) <= 1
    assert all(len(rank) == accumulate * len(one) for rank in ranks)


def test_repeated_images_come_as_often_as_told_and_each_time_as_in_another_epoch() -> None:
    batches = TrainBatches(4, 6, seed=0, repeat=3)
    keys = {}
    for epoch in (0, 1):
        batches.epoch = epoch
        keys[epoch] = [key for batch in batches for key in batch]
        assert sorted(index for _, index in keys[epoch]) == sorted(list(range(4)) * 3)
        assert {key[0] for key in keys[epoch]} == {3 * epoch, 3 * epoch + 1, 3 * epoch + 2}
        assert len(set(keys[epoch])) == 12
    assert len(batches) == 2


@pytest.mark.parametrize(
    ("num_images", "parts", "hint"), [(3, (4, 1), "fewer processes"), (9, (5, 1), "--batch-size 5"), (9, (3, 2), "6")]
)
def test_too_few_images_for_all_parts_is_said(num_images: int, parts: tuple[int, int], hint: str) -> None:
    with pytest.raises(UsageError, match="cannot be shared") as caught:
        TrainBatches(num_images, 4, seed=0, world_size=parts[0], accumulate=parts[1])
    assert hint in str(caught.value.hint)


def test_no_image_is_said() -> None:
    with pytest.raises(UsageError, match="no image"):
        TrainBatches(0, 4, seed=0)


@pytest.mark.parametrize("num_images", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_f62_evaluation_shards_hold_each_image_once_in_the_same_batches(num_images: int, world_size: int) -> None:
    ranks = [list(EvalBatches(num_images, 2, rank, world_size)) for rank in range(world_size)]
    assert [len(EvalBatches(num_images, 2, rank, world_size)) for rank in range(world_size)] == list(map(len, ranks))
    batches = sorted(batch for rank in ranks for batch in rank)
    assert batches == list(EvalBatches(num_images, 2))
    assert [index for batch in batches for _, index in batch] == list(range(num_images))


def test_workers_change_nothing(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    alone = TrainLoader(_train_set(annotations, tmp_path), _config(), seed=2)
    workers = TrainLoader(_train_set(annotations, tmp_path), _config(num_workers=2), seed=2)
    for epoch in (0, 1):  # the second with the same workers
        for a, b in zip(alone.epoch(epoch), workers.epoch(epoch), strict=True):
            _assert_equal_steps(a, b)
    rest = list(workers.epoch(1, start_step=2))
    assert len(rest) == 1 == len(alone) - 2
    _assert_equal_steps(rest[0], list(alone.epoch(1))[2])


def test_an_epoch_given_up_does_not_spoil_the_next(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    loader = TrainLoader(_train_set(annotations, tmp_path), _config(batch_size=1, num_workers=2), seed=2)
    expected = list(TrainLoader(_train_set(annotations, tmp_path), _config(batch_size=1), seed=2).epoch(3))
    list(islice(loader.epoch(0), 1))
    for a, b in zip(loader.epoch(3), expected, strict=True):
        _assert_equal_steps(a, b)


def test_loading_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        config = _config(num_workers=num_workers)
        list(TrainLoader(_train_set(annotations, tmp_path), config, seed=2).epoch(0))
        list(EvalLoader(_eval_set(annotations, tmp_path), config))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_goes_in_the_order_of_the_file_and_can_be_repeated(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    loader = EvalLoader(_eval_set(annotations, tmp_path), _config(batch_size=4, num_workers=1))
    assert len(loader) == 2
    for _ in range(2):
        assert [batch.image_ids for batch in loader] == [(100, 101, 102, 103), (104, 105)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_a_data_error_through_workers(tmp_path: Path, num_workers: int) -> None:
    annotations = make_scene(tmp_path)
    path = tmp_path / annotations.images[3].file_name
    path.write_bytes(b"not an image at all")
    loader = EvalLoader(_eval_set(annotations, tmp_path), _config(num_workers=num_workers))
    with pytest.raises(DataError, match="image id 103") as caught:
        list(loader)
    assert caught.value.where == str(path)
    assert caught.value.hint
    assert "Traceback" not in str(caught.value)


def _worker_pids(loader: TrainLoader) -> list[int]:
    return [worker.pid for worker in loader._loader._iterator._workers]  # type: ignore[union-attr]


def _kill(number: signal.Signals, pid: int) -> None:
    """Send a signal from another process, as a scheduler does."""
    subprocess.run([sys.executable, "-c", f"import os; os.kill({pid}, {int(number)})"], check=True)


def test_workers_ignore_the_signals_that_end_a_run(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    loader = TrainLoader(_train_set(annotations, tmp_path), _config(batch_size=1, num_workers=1), seed=2)
    num_batches = 0
    for num_batches, _ in enumerate(loader.epoch(0), start=1):
        if num_batches == 1:
            _kill(signal.SIGINT, _worker_pids(loader)[0])
            _kill(signal.SIGTERM, _worker_pids(loader)[0])
            time.sleep(0.2)
    assert num_batches == 6


def test_workers_end_when_their_parent_says_so(tmp_path: Path) -> None:
    """On the way out Python's multiprocessing sends SIGTERM to the workers that are left, and waits for them."""
    annotations = make_scene(tmp_path)
    loader = TrainLoader(_train_set(annotations, tmp_path), _config(batch_size=1, num_workers=1), seed=2)
    batches = loader.epoch(0)
    next(batches)
    worker = loader._loader._iterator._workers[0]  # type: ignore[union-attr]
    worker.terminate()
    worker.join(timeout=5)
    assert not worker.is_alive()


def test_a_closed_loader_has_no_workers_and_can_start_again(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    loader = TrainLoader(_train_set(annotations, tmp_path), _config(num_workers=2), seed=2)
    loader.close()
    first = list(loader.epoch(0))
    workers = loader._loader._iterator._workers  # type: ignore[union-attr]
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 3
    assert not any(worker.is_alive() for worker in workers)
    for a, b in zip(loader.epoch(0), first, strict=True):
        _assert_equal_steps(a, b)


def test_an_error_ends_the_workers(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    (tmp_path / annotations.images[0].file_name).write_bytes(b"")
    loader = EvalLoader(_eval_set(annotations, tmp_path), _config(num_workers=2))
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError):
        list(loader)
    assert set(multiprocessing.active_children()) <= before


def test_a_process_with_living_workers_can_exit(tmp_path: Path) -> None:
    """With the loader held by a traceback until the end, as after an error in the middle of an epoch."""
    make_scene(tmp_path)
    program = f"""
        from pathlib import Path
        from tests.datasets.scenes import make_scene
        from tests.datasets.test_batches import TrainLoader, _config, _train_set

        root = Path({str(tmp_path)!r})
        loader = TrainLoader(_train_set(make_scene(root), root), _config(batch_size=1, num_workers=2), seed=2)
        batches = loader.epoch(0)
        next(batches)
        raise SystemExit(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr


def test_f65_a_killed_worker_is_a_machine_error(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path, num_images=40)
    loader = TrainLoader(_train_set(annotations, tmp_path), _config(batch_size=1, num_workers=1), seed=2)

    def kill_while_iterating() -> None:
        with data_worker_errors():
            for _ in loader.epoch(0):
                os.kill(_worker_pids(loader)[0], signal.SIGKILL)
                time.sleep(0.05)

    with pytest.raises(MachineError, match="data worker died") as caught:
        kill_while_iterating()
    assert "/dev/shm" in str(caught.value.hint)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on shared memory")
def test_f65_a_batch_without_shared_memory_is_a_machine_error(tmp_path: Path) -> None:
    """The limit on the size of files holds for it too. (A full one: tests/faults/test_processes.py)"""
    import resource

    annotations = make_scene(tmp_path, num_images=2, size=(800, 800))
    config = DataConfig(short_side=800, max_long_side=800, batch_size=2, num_workers=1)
    dataset = DetectionDataset(annotations, tmp_path, CLASSES, eval_transform(config), seed=1, drop_crowds=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(MachineError, match=r"data worker 0 has no shared memory for a batch: .*large") as caught:
            list(EvalLoader(dataset, config))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "/dev/shm" in str(caught.value.hint)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), data_worker_errors():
        raise RuntimeError("shapes do not fit in DataLoader worker process 0")


@pytest.mark.parametrize(("error", "is_said"), [(ConnectionResetError("peer"), False), (ValueError("odd"), True)])
def test_a_worker_says_nothing_of_a_parent_that_was_killed(
    error: Exception, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_unless_parent_is_gone(type(error), error, None)
    assert ("odd" in capsys.readouterr().err) is is_said
