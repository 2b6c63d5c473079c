from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from PIL import Image
from torch import Tensor

from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.config.schema import DataConfig
from core.datasets.dataset import DetectionDataset
from core.datasets.transforms import EvalTransform, TransformedImage
from core.errors import DataError
from core.evaluation.preflight import PreflightResult, replay_ground_truth
from core.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from tests.datasets.scenes import CLASSES, eval_transform, make_scene

CONFIG = DataConfig(short_side=64, max_long_side=120)
TRANSFORM = eval_transform(CONFIG)


def _replay(
    annotations: AnnotationSet,
    root: Path,
    *,
    classes: Sequence[Category] = CLASSES,
    dataset_annotations: AnnotationSet | None = None,
    dataset_classes: Sequence[Category] = CLASSES,
    transform: EvalTransform = TRANSFORM,
    sample_size: int = 64,
) -> PreflightResult:
    dataset = DetectionDataset(
        dataset_annotations or annotations, root, dataset_classes, transform, seed=0, drop_crowds=True
    )
    return replay_ground_truth(dataset, annotations, classes, split="val", sample_size=sample_size)


def _with_boxes(annotations: AnnotationSet, boxes: Sequence[Sequence[float]]) -> AnnotationSet:
    changed = (structs.replace(a, box_xywh_px=tuple(b)) for a, b in zip(annotations.annotations, boxes, strict=True))
    return replace(annotations, annotations=tuple(changed))


def _as_xyxy(annotations: AnnotationSet) -> AnnotationSet:
    """Write the boxes as two corners, which is what a wrong converter does."""
    boxes = [a.box_xywh_px for a in annotations.annotations]
    return _with_boxes(annotations, [(left, top, left + w, top + h) for left, top, w, h in boxes])


def test_correct_annotations_score_one(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    result = _replay(annotations, tmp_path)
    assert result.ap == pytest.approx(1)
    assert result.num_images == 5  # of six, one without objects
    assert result.num_boxes == len(annotations.annotations)
    assert result.num_boxes_outside == 0
    assert result.images_over_limit == ()


def test_a_split_without_boxes_has_no_number(tmp_path: Path) -> None:
    annotations = replace(make_scene(tmp_path), annotations=())
    assert _replay(annotations, tmp_path).ap is None


@pytest.mark.parametrize("seed", range(8))
def test_corners_taken_for_sizes_are_caught(tmp_path: Path, seed: int) -> None:
    annotations = _as_xyxy(make_scene(tmp_path, num_images=12, seed=seed))
    with pytest.raises(DataError, match="would fit as two corners") as caught:
        _replay(annotations, tmp_path)
    assert caught.value.where == "split val"
    assert "left, top, width, height" in str(caught.value.hint)


def test_a_data_set_that_misreads_the_format_is_caught(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    with pytest.raises(DataError, match="score an AP of only"):
        _replay(annotations, tmp_path, dataset_annotations=_as_xyxy(annotations))


def test_a_wrong_class_map_is_caught(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    with pytest.raises(DataError, match="score an AP of only") as caught:
        _replay(annotations, tmp_path, dataset_classes=CLASSES[::-1])
    assert "category ids" in str(caught.value.hint)


def test_names_that_contradict_each_other_are_caught(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    swapped = (Category(3, "green"), Category(7, "red"), Category(90, "blue"))
    with pytest.raises(DataError, match="category id 3 is 'red' here and 'green' among the classes"):
        _replay(annotations, tmp_path, classes=swapped, dataset_classes=swapped)


class _ForgetsToScale(EvalTransform):
    def __call__(
        self, image: Tensor, boxes_xyxy_px: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> TransformedImage:
        whole = super().__call__(image, boxes_xyxy_px, labels)
        return whole._replace(boxes_cxcywh_norm=whole.boxes_cxcywh_norm * 0.9)


def test_a_faulty_transform_is_caught(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="score an AP of only"):
        _replay(make_scene(tmp_path), tmp_path, transform=_ForgetsToScale(CONFIG, IMAGENET_MEAN, IMAGENET_STD))


def test_objects_cut_off_by_the_edge_pass_and_lower_the_ceiling(tmp_path: Path) -> None:
    """Boxes of whole objects, also where these leave the picture: correct data, clipped in training."""
    annotations = make_scene(tmp_path, num_images=12)
    boxes = [list(a.box_xywh_px) for a in annotations.annotations]
    for row in range(0, len(boxes), 3):
        left, _, _, _ = boxes[row]
        boxes[row][0], boxes[row][2] = left - boxes[row][2] * 0.3 - left, boxes[row][2] + left
    result = _replay(_with_boxes(annotations, boxes), tmp_path)
    assert result.num_boxes_outside == len(range(0, len(boxes), 3))
    assert result.ap is not None
    assert result.ap < 0.99


def test_crowds_empty_and_overlapping_boxes_pass(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    first = annotations.annotations[0]
    left, top, width, height = first.box_xywh_px
    more = (
        structs.replace(first, id=900, box_xywh_px=(0.0, 0.0, 50.0, 50.0), is_crowd=True),
        structs.replace(first, id=901, box_xywh_px=(left, top, 0.0, height)),
        structs.replace(first, id=902),  # the same box twice
        structs.replace(first, id=903, box_xywh_px=(left + 0.25, top, width, height)),
        structs.replace(first, id=904, box_xywh_px=(left, top, 0.5, 0.5)),
    )
    result = _replay(replace(annotations, annotations=(*annotations.annotations, *more)), tmp_path)
    assert result.num_boxes == len(annotations.annotations) + 4


def test_images_with_more_than_100_objects_are_named_and_pass(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "dense.png")
    boxes = [(float(x * 12), float(y * 12), 9.0, 7.0) for x in range(15) for y in range(10)]
    annotations = AnnotationSet(
        (ImageRecord(1, "dense.png", 300, 200),),
        tuple(Annotation(row, 1, 3, box, 63.0, is_crowd=False) for row, box in enumerate(boxes)),
        CLASSES,
    )
    result = _replay(annotations, tmp_path)
    assert result.ap == pytest.approx(1)
    assert result.images_over_limit == ("dense.png",)


def test_a_sample_is_spread_evenly_and_shows_each_class(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path, num_images=40)
    result = _replay(annotations, tmp_path, sample_size=6)
    assert 6 <= result.num_images <= 9
    shown = {a.category_id for a in annotations.annotations}
    assert shown == {3, 7, 90}


def test_a_damaged_image_of_the_sample_is_named(tmp_path: Path) -> None:
    annotations = make_scene(tmp_path)
    (tmp_path / "000104.png").write_bytes(b"")
    with pytest.raises(DataError, match="image id 104"):
        _replay(annotations, tmp_path)
