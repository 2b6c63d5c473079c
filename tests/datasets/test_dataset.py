from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.config.schema import DataConfig
from core.datasets.dataset import DetectionDataset, pack_boxes
from core.datasets.seeds import derived_seed
from core.errors import DataError
from core.ops.boxes import cxcywh_to_xyxy
from tests.datasets.scenes import CLASSES, eval_transform, make_scene, train_transform

SMALL = DataConfig(short_side=64, max_long_side=120)


def _dataset(annotations: AnnotationSet, root: Path, *, augment: bool = True, seed: int = 0) -> DetectionDataset:
    transform = train_transform(SMALL) if augment else eval_transform(SMALL)
    return DetectionDataset(annotations, root, CLASSES, transform, seed=seed, drop_crowds=True)


def _annotation(
    number: int, box: tuple[float, float, float, float], category_id: int = 3, *, crowd: bool = False
) -> Annotation:
    return Annotation(number, 1, category_id, box, box[2] * box[3], is_crowd=crowd)


def test_a_sample_holds_what_the_file_says(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    dataset = _dataset(annotations, tmp_path, augment=False)
    by_image = annotations.by_image()
    label_of = {category.id: label for label, category in enumerate(CLASSES)}
    assert len(dataset) == 6
    for index, image in enumerate(annotations.images):
        sample = dataset[0, index]
        assert sample.image_id == image.id
        assert sample.original_size_hw == (image.height, image.width)
        assert sample.target.copy_index is None
        expected = by_image[image.id]
        assert sample.target.labels.tolist() == [label_of[a.category_id] for a in expected]
        scale = torch.tensor([image.width, image.height, image.width, image.height])
        boxes = cxcywh_to_xyxy(sample.target.boxes_cxcywh_norm) * scale
        for box, annotation in zip(boxes.tolist(), expected, strict=True):
            left, top, width, height = annotation.box_xywh_px
            assert box == pytest.approx([left, top, left + width, top + height], abs=1e-3)


def test_image_without_objects_has_boxes_of_shape_0_4(tmp_path: Path) -> None:
    sample = _dataset(make_scene(tmp_path), tmp_path)[0, 2]
    assert sample.target.boxes_cxcywh_norm.shape == (0, 4)
    assert sample.target.labels.shape == (0,)
    assert sample.target.labels.dtype == torch.int64


def test_augmentation_follows_from_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    first, again = _dataset(annotations, tmp_path), _dataset(annotations, tmp_path)
    for epoch, index in ((0, 0), (3, 1), (1, 4)):
        assert torch.equal(first[epoch, index].pixels, again[epoch, index].pixels)
    again[7, 3]  # what was read before does not matter
    assert torch.equal(first[0, 0].pixels, again[0, 0].pixels)
    other_seed = _dataset(annotations, tmp_path, seed=1)
    for variants in ([first[epoch, 0] for epoch in range(6)], [other_seed[0, 0], first[0, 0]]):
        shapes = {(tuple(s.pixels.shape), round(float(s.pixels.sum()), 2)) for s in variants}
        assert len(shapes) > 1


def test_seeds_are_the_same_everywhere_and_differ_by_purpose() -> None:
    # A stated value: another Python, machine or process must come to the same.
    assert derived_seed("augmentation", 42, 3, 17) == derived_seed("augmentation", 42, 3, 17)
    seeds = {derived_seed(purpose, a, b) for purpose in ("order", "x") for a in range(20) for b in range(20)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("a", 1, 12) != derived_seed("a", 11, 2)


def test_boxes_are_clipped_and_crowds_and_empty_ones_dropped() -> None:
    image = ImageRecord(1, "a.png", 40, 20)
    annotations = AnnotationSet(
        (image, ImageRecord(2, "b.png", 10, 10)),
        (
            _annotation(1, (-5, -5, 15, 15)),
            _annotation(2, (30, 10, 50, 50), 90),
            _annotation(3, (5, 5, 0, 4)),
            _annotation(4, (41, 0, 10, 10)),
            _annotation(5, (1, 1, 8, 8), 7, crowd=True),
        ),
        CLASSES,
    )
    boxes, labels, first = pack_boxes(annotations, CLASSES, drop_crowds=True)
    assert boxes.tolist() == [[0, 0, 10, 10], [30, 10, 40, 20]]
    assert labels.tolist() == [0, 2]
    assert first.tolist() == [0, 2, 2]
    assert pack_boxes(annotations, CLASSES, drop_crowds=False)[1].tolist() == [0, 2, 1]


def test_labels_follow_the_order_of_the_classes() -> None:
    annotations = AnnotationSet(
        (ImageRecord(1, "a.png", 40, 20),), (_annotation(1, (0, 0, 9, 9), 90), _annotation(2, (0, 0, 9, 9), 3)), CLASSES
    )
    assert pack_boxes(annotations, CLASSES, drop_crowds=True)[1].tolist() == [2, 0]
    assert pack_boxes(annotations, CLASSES[::-1], drop_crowds=True)[1].tolist() == [0, 2]


def test_empty_set_packs_to_nothing() -> None:
    boxes, labels, first = pack_boxes(AnnotationSet((), (), CLASSES), CLASSES, drop_crowds=True)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)
    assert first.tolist() == [0]


def test_unknown_category_is_refused() -> None:
    annotations = AnnotationSet((ImageRecord(1, "a.png", 40, 20),), (_annotation(8, (0, 0, 9, 9), 4),), CLASSES)
    with pytest.raises(DataError, match="category id 4") as caught:
        pack_boxes(annotations, (Category(3, "red"),), drop_crowds=True)
    assert "a.png" in str(caught.value)
    assert "3 red" in str(caught.value.hint)


def test_unlisted_image_is_refused() -> None:
    annotations = AnnotationSet((), (_annotation(1, (0, 0, 9, 9)),), CLASSES)
    with pytest.raises(DataError, match="image id 1"):
        pack_boxes(annotations, CLASSES, drop_crowds=True)


def test_a_damaged_image_is_named_with_its_id(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    path = tmp_path / annotations.images[1].file_name
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"image id 101") as caught:
        _dataset(annotations, tmp_path)[0, 1]
    assert path.name in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    wrong = (replace(annotations.images[0], width=annotations.images[0].width + 1), *annotations.images[1:])
    with pytest.raises(DataError, match="pixels"):
        _dataset(replace(annotations, images=wrong), tmp_path)[0, 0]


def test_file_names_cannot_leave_the_image_root(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path / "inside")
    make_scene(tmp_path / "outside")
    escaping = replace(annotations.images[0], file_name="../outside/000100.png")
    with pytest.raises(DataError, match="escapes image root"):
        _dataset(replace(annotations, images=(escaping, *annotations.images[1:])), tmp_path / "inside")[0, 0]
