from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.config.schema import DataConfig, PostprocessConfig
from core.datasets.dataset import DetectionDataset
from core.datasets.loaders import EvalLoader
from core.evaluation.coco import CocoEvaluator
from core.evaluation.run import collect_detections, evaluate
from core.models.postprocess import Postprocess
from core.models.specs import DecoderFamily
from core.structures import ImageBatch, ModelOutput
from tests.datasets.scenes import CLASSES, eval_transform, make_scene

CPU = torch.device("cpu")
CONFIG = DataConfig(short_side=64, max_long_side=120, batch_size=4)


class ColorFinder(nn.Module):
    """Finds the rectangles of a scene by their colours: one query for each class and column of the picture."""

    def forward(self, images: ImageBatch) -> ModelOutput:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        rows = [self._find(p[:, :h, :w]) for p, (h, w) in zip(images.pixels, images.sizes_hw.tolist(), strict=True)]
        return ModelOutput(torch.stack([r[0] for r in rows])[None], torch.stack([r[1] for r in rows])[None])

    def _find(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = torch.full((12, 3), -8.0), torch.full((12, 4), 0.5)
        query = 0
        for label in range(3):
            others = [c for c in range(3) if c != label]
            is_color = (pixels[label] > 0.5) & (pixels[others] < 0).all(0)
            columns = torch.cat([torch.zeros(1), is_color.any(0).float(), torch.zeros(1)])
            starts, ends = (columns.diff() == 1).nonzero()[:, 0], (columns.diff() == -1).nonzero()[:, 0]
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                lines = is_color[:, start:end].any(1).nonzero()[:, 0]
                top, bottom = int(lines[0]), int(lines[-1]) + 1
                scale = torch.tensor([pixels.shape[-1], pixels.shape[-2]] * 2)
                centre_size = torch.tensor([(start + end) / 2, (top + bottom) / 2, end - start, bottom - top])
                boxes[query], logits[query, label] = centre_size / scale, 5.0
                query += 1
        return logits, boxes


def _dataset(tmp_path: Path) -> tuple[DetectionDataset, CocoEvaluator]:
    annotations = make_scene(tmp_path, num_images=9)
    dataset = DetectionDataset(annotations, tmp_path, CLASSES, eval_transform(CONFIG), seed=0, drop_crowds=True)
    return dataset, CocoEvaluator(annotations, CLASSES)


POSTPROCESS = Postprocess(PostprocessConfig(max_detections=10), DecoderFamily.CONDITIONAL)


def test_a_model_that_sees_the_rectangles_scores_high(tmp_path: Path) -> None:
    dataset, evaluator = _dataset(tmp_path)
    model = ColorFinder().train()
    done: list[int] = []
    result = evaluate(model, POSTPROCESS, EvalLoader(dataset, CONFIG), evaluator, CPU, done.append)
    assert done == [4, 8, 9]
    assert result.num_images == 9
    assert result.stats["AP50"] == pytest.approx(1)
    assert result.stats["AP"] is not None
    assert result.stats["AP"] > 0.7
    assert model.training  # as it was


def test_shards_of_two_ranks_give_the_numbers_of_one(tmp_path: Path) -> None:
    dataset, evaluator = _dataset(tmp_path)
    model = ColorFinder()
    whole = evaluate(model, POSTPROCESS, EvalLoader(dataset, CONFIG), evaluator, CPU)
    gathered = CocoEvaluator(evaluator.annotations, CLASSES)
    for rank in (1, 0):
        loader = EvalLoader(dataset, CONFIG, rank=rank, world_size=2)
        for image_id, detections in collect_detections(model, POSTPROCESS, loader, CPU).items():
            gathered.add(image_id, detections)
    assert gathered.compute() == whole


def test_every_image_exactly_once(tmp_path: Path) -> None:
    dataset, evaluator = _dataset(tmp_path)
    batches = list(EvalLoader(dataset, CONFIG))
    with pytest.raises(ValueError, match="twice"):
        evaluate(ColorFinder(), POSTPROCESS, [*batches, batches[0]], evaluator, CPU)
    with pytest.raises(ValueError, match="1 images were not evaluated"):
        evaluate(ColorFinder(), POSTPROCESS, batches[:-1], evaluator, CPU)


def test_what_the_callback_raises_ends_the_run(tmp_path: Path) -> None:
    dataset, evaluator = _dataset(tmp_path)
    model = ColorFinder().train()

    def stop(num_images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, POSTPROCESS, EvalLoader(dataset, CONFIG), evaluator, CPU, stop)
    assert model.training
