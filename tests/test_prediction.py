from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from core.annotations.records import Category
from core.config.schema import DataConfig
from core.errors import DataError, UsageError
from core.prediction.detect import ImagePrediction, predict_images
from core.prediction.folder import PredictionFolder
from core.prediction.inputs import collect_images
from core.prediction.outputs import label_paths, write_predictions_csv, write_predictions_json, write_yolo_labels
from core.structures import Detections, ImageBatch, ModelOutput
from tests.datasets.scenes import eval_transform, make_scene
from tests.trainer.tiny import tiny_assembly, tiny_config

CLASSES = (Category(17, "cat"), Category(3, "=car"))
TRANSFORM = eval_transform(DataConfig(short_side=48, max_long_side=90))
CPU = torch.device("cpu")


def _save(path: Path, size: tuple[int, int] = (60, 40), color: tuple[int, int, int] = (9, 9, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


class _Brightness(nn.Module):
    """Says how bright an image is, so that mixed-up images show."""

    def forward(self, images: ImageBatch) -> ModelOutput:
        assert not self.training
        inside = ~images.padding_mask[:, None]
        mean = (images.pixels * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)) / 3
        logits = mean[:, None, None].expand(-1, 3, 2)
        boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.4, 0.4], [1.5, 1.5, 0.2, 0.2]])
        return ModelOutput(logits[None], boxes.expand(len(mean), -1, -1)[None])


def _postprocess(output: ModelOutput, sizes_hw: Tensor) -> list[Detections]:
    """Three boxes an image with scores .25, .75, .5 + brightness / 1000; the last box is outside the image."""
    found = []
    for logits, boxes, (height, width) in zip(output.logits[-1], output.boxes_cxcywh_norm[-1], sizes_hw, strict=True):
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
        scores = torch.tensor([0.25, 0.75, 0.5]) + logits[:, 0] / 1000
        found.append(Detections(corners * torch.stack([width, height] * 2), scores, torch.tensor([0, 1, 0])))
    return found


def _predict(paths: list[Path], *, batch_size: int = 2, threshold: float = 0.1) -> list[ImagePrediction]:
    return list(
        predict_images(_Brightness(), _postprocess, TRANSFORM, paths, CPU, batch_size=batch_size, threshold=threshold)
    )


def test_files_folders_and_patterns_are_collected_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.png", ".hidden.png"):
        _save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    odd = tmp_path / "photo.dat"
    _save(tmp_path / "x.png").rename(odd)
    names = [p.relative_to(tmp_path).as_posix() for p in collect_images([tmp_path])]
    assert names == ["a.JPG", "b.png"]
    everything = collect_images([str(tmp_path / "**" / "*"), tmp_path, tmp_path / "sub" / ".." / "b.png", odd])
    assert [p.relative_to(tmp_path).as_posix() for p in everything] == ["a.JPG", "b.png", "sub/c.png", "photo.dat"]


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    path = _save(tmp_path / "a[1].png")
    assert collect_images([str(path)]) == [path]


@pytest.mark.parametrize("name", ["missing.png", "empty", "empty/*.jpg"])
def test_an_input_without_images_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    _save(tmp_path / "good.png")
    with pytest.raises(DataError) as caught:
        collect_images([tmp_path / "good.png", tmp_path / name])
    assert caught.value.exit_code == 3
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.hint


def test_detections_are_clipped_sorted_and_above_the_threshold(tmp_path: Path) -> None:
    (prediction,) = _predict([_save(tmp_path / "a.png", (60, 40))])
    assert prediction.size_wh == (60, 40)
    assert prediction.error is None
    assert prediction.detections is not None
    # The third box lies outside; the second reaches over the corner.
    assert prediction.detections.labels.tolist() == [1, 0]
    assert prediction.detections.scores.tolist() == sorted(prediction.detections.scores.tolist(), reverse=True)
    expected = torch.tensor([[42.0, 28, 60, 40], [15, 10, 45, 30]])
    assert torch.allclose(prediction.detections.boxes_xyxy_px, expected)
    (sure,) = _predict([tmp_path / "a.png"], threshold=0.6)
    assert sure.detections is not None
    assert sure.detections.labels.tolist() == [1]


def test_unreadable_files_are_reported_and_the_rest_is_done(tmp_path: Path) -> None:
    paths = [_save(tmp_path / f"{n}.png", (60 + 10 * n, 40), (40 * n,) * 3) for n in range(5)]
    paths[1].write_bytes(b"broken")
    paths[2].write_bytes(paths[2].read_bytes()[:50])
    mixed = _predict(paths, batch_size=3)
    assert [p.path for p in mixed] == paths
    assert [p.error is None for p in mixed] == [True, False, False, True, True]
    for prediction in mixed:
        if prediction.error is not None:
            assert prediction.detections is None
            assert prediction.size_wh is None
            assert str(prediction.path) in str(prediction.error)
            continue
        (alone,) = _predict([prediction.path])
        assert alone.size_wh == prediction.size_wh
        assert alone.detections is not None
        assert prediction.detections is not None
        assert torch.allclose(alone.detections.scores, prediction.detections.scores)
        assert torch.allclose(alone.detections.boxes_xyxy_px, prediction.detections.boxes_xyxy_px)
    scores = [float(p.detections.scores[0]) for p in mixed if p.detections is not None]
    assert scores == sorted(scores)  # brighter images score higher: none was mixed up
    assert len(set(scores)) == 3


def test_a_batch_without_a_readable_file(tmp_path: Path) -> None:
    bad = tmp_path / "a.png"
    bad.write_bytes(b"")
    assert [p.error is not None for p in _predict([bad, bad], batch_size=2)] == [True, True]


def test_json_holds_original_ids_and_boxes_as_xywh(tmp_path: Path) -> None:
    predictions = _predict([_save(tmp_path / "b.png"), _save(tmp_path / "a.png")])
    out = tmp_path / "out" / "predictions.json"
    write_predictions_json(out, predictions, CLASSES)
    entries = json.loads(out.read_text())
    assert [entry["image_id"] for entry in entries] == [1, 1, 2, 2]
    assert entries[0]["file_name"] == (tmp_path / "b.png").as_posix()
    assert (entries[0]["category_id"], entries[0]["category_name"]) == (3, "=car")
    assert entries[0]["bbox"] == pytest.approx([42, 28, 18, 12], abs=1e-3)
    assert entries[0]["score"] == pytest.approx(float(predictions[0].detections.scores[0]), abs=1e-6)  # type: ignore[union-attr]


def test_json_takes_image_ids_from_numeric_names(tmp_path: Path) -> None:
    predictions = _predict([_save(tmp_path / "000000397133.png"), _save(tmp_path / "7.png")])
    write_predictions_json(tmp_path / "p.json", predictions, CLASSES)
    assert {entry["image_id"] for entry in json.loads((tmp_path / "p.json").read_text())} == {397133, 7}
    clash = _predict([_save(tmp_path / "x" / "7.png"), _save(tmp_path / "y" / "007.png")])
    write_predictions_json(tmp_path / "p.json", clash, CLASSES)
    assert {entry["image_id"] for entry in json.loads((tmp_path / "p.json").read_text())} == {1, 2}


def test_nothing_found_is_an_empty_list(tmp_path: Path) -> None:
    predictions = _predict([_save(tmp_path / "a.png")], threshold=0.99)
    write_predictions_json(tmp_path / "p.json", predictions, CLASSES)
    assert json.loads((tmp_path / "p.json").read_text()) == []
    write_predictions_csv(tmp_path / "p.csv", predictions, CLASSES)
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["=cmd|'calc'!A1.png", "+1.png", "-2.png", "@x.png", 'plain "quoted", näme.png'])
def test_csv_is_safe_to_open_in_a_spreadsheet(tmp_path: Path, name: str) -> None:
    found = Detections(torch.tensor([[1.0, 2, 4, 8]]), torch.tensor([0.5]), torch.tensor([1]))
    prediction = ImagePrediction(Path(name), (10, 10), found)
    write_predictions_csv(tmp_path / "p.csv", [prediction], CLASSES)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["file_name"] == (name if name.startswith("plain") else f"'{name}")
    assert row["category_name"] == "'=car"
    assert [row[key] for key in ("category_id", "score", "left", "top", "width", "height")] == [
        "3", "0.5", "1.0", "2.0", "3.0", "6.0",
    ]  # fmt: skip


def test_files_with_errors_write_no_rows(tmp_path: Path) -> None:
    failed = ImagePrediction(Path("a.png"), None, None, DataError("broken", where="a.png"))
    write_predictions_csv(tmp_path / "p.csv", [failed], CLASSES)
    write_predictions_json(tmp_path / "p.json", [failed], CLASSES)
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "p.json").read_text()) == []


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_the_batch_size_changes_nothing_but_the_speed(tmp_path: Path, batch_size: int) -> None:
    sizes = [(140, 60), (60, 140), (100, 100), (140, 60), (90, 91), (60, 140), (140, 60)]
    paths = []
    for number, size in enumerate(sizes):
        scene = make_scene(tmp_path / str(number), 1, seed=number, size=size, num_boxes=2)
        paths.append(tmp_path / str(number) / scene.images[0].file_name)
    assembly = tiny_assembly(tiny_config())
    parts = (assembly.model, assembly.postprocess, assembly.eval_transform, paths, CPU)
    alone = list(predict_images(*parts, batch_size=1, threshold=0.0))
    together = list(predict_images(*parts, batch_size=batch_size, threshold=0.0))
    assert [prediction.path for prediction in together] == paths
    for one, other in zip(alone, together, strict=True):
        assert one.detections is not None
        assert other.detections is not None
        assert len(one.detections) == len(other.detections) > 0
        assert torch.allclose(one.detections.scores, other.detections.scores, atol=1e-4)
        assert torch.allclose(one.detections.boxes_xyxy_px, other.detections.boxes_xyxy_px, atol=1e-2)


def test_images_of_one_size_share_a_batch(tmp_path: Path) -> None:
    sizes = [(60, 40), (40, 60), (60, 40), (40, 60), (60, 40)]
    paths = [_save(tmp_path / f"{number}.png", size) for number, size in enumerate(sizes)]
    seen: list[int] = []
    model = _Brightness()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0].pixels)))
    list(predict_images(model, _postprocess, TRANSFORM, paths, CPU, batch_size=2, threshold=0.1))
    assert seen == [2, 1, 2]


def test_only_wanted_labels_are_kept(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png")
    for labels, expected in (({0}, [0]), ({1}, [1]), ({0, 1}, [1, 0]), ({5}, []), (None, [1, 0])):
        (prediction,) = predict_images(
            _Brightness(), _postprocess, TRANSFORM, [path], CPU, batch_size=1, threshold=0.1, labels=labels
        )
        assert prediction.detections is not None
        assert prediction.detections.labels.tolist() == expected


def test_yolo_labels_are_shares_of_the_image_with_the_score_last(tmp_path: Path) -> None:
    found = Detections(
        torch.tensor([[6.0, 4, 18, 24], [0, 0, 60, 40]]), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
    )
    write_yolo_labels(tmp_path / "labels" / "a.txt", ImagePrediction(Path("a.png"), (60, 40), found))
    assert (tmp_path / "labels" / "a.txt").read_text().splitlines() == [
        "1 0.200000 0.350000 0.200000 0.500000 0.750000",
        "0 0.500000 0.500000 1.000000 1.000000 0.500000",
    ]
    nothing = found.select(torch.tensor([], dtype=torch.int64))
    write_yolo_labels(tmp_path / "b.txt", ImagePrediction(Path("b.png"), (60, 40), nothing))
    assert (tmp_path / "b.txt").read_bytes() == b""
    with pytest.raises(ValueError, match="not read"):
        write_yolo_labels(tmp_path / "c.txt", ImagePrediction(Path("c.png"), None, None, DataError("broken")))


def test_label_files_have_names_of_their_own() -> None:
    images = [Path("a/x.jpg"), Path("b/x.png"), Path("c/classes.jpg")]
    class_list, labels = label_paths(Path("labels"), images)
    assert class_list == Path("labels/classes.txt")
    assert [path.name for path in labels] == ["x.txt", "x-2.txt", "classes-2.txt"]


def _write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_an_earlier_prediction_wrote_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = PredictionFolder(out)
    old = [out / "a.png", out / "crops" / "cat" / "a-1.jpg", out / "labels" / "a.txt", out / "labels" / "b.txt"]
    first.check(old)
    first.claim(old)
    _write(*old)
    first.finish(old)
    _write(out / "labels" / "mine.txt")
    second = PredictionFolder(out)
    new = [out / "a.png", out / "labels" / "a.txt"]
    second.check(new)
    second.claim(new)
    _write(*new)
    second.finish(new)
    assert _names(out) == ["a.png", "labels/a.txt", "labels/mine.txt", "manifest.json"]
    assert not (out / "crops").exists()
    third = PredictionFolder(out)
    for files, folders in (([out / "labels" / "mine.txt"], []), ([], [out / "labels"])):
        with pytest.raises(UsageError, match="earlier prediction") as caught:
            third.check(files, folders)
        assert caught.value.where == str(out / "labels" / "mine.txt")


def test_a_prediction_that_was_stopped_leaves_nothing_that_the_next_does_not_know(tmp_path: Path) -> None:
    stopped = PredictionFolder(tmp_path / "out")
    stopped.claim([tmp_path / "out" / "a.png", tmp_path / "out" / "b.png"])
    _write(tmp_path / "out" / "a.png")
    following = PredictionFolder(tmp_path / "out")
    following.check([tmp_path / "out" / "a.png"])
    following.claim([])
    following.finish([])
    assert _names(tmp_path / "out") == ["manifest.json"]


@pytest.mark.parametrize("content", ['{"kind": "run", "files": []}', "[]", "{", '{"kind": "dedetr predictions"}'])
def test_a_folder_with_somebody_elses_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match="other files"):
        PredictionFolder(tmp_path).check([])


def test_f31_a_manifest_cannot_remove_what_lies_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _write(tmp_path / "precious.txt", out / "link" / "kept.txt")
    (out / "away").symlink_to(tmp_path)
    names = ["../precious.txt", str(tmp_path / "precious.txt"), "away/precious.txt"]
    (out / "manifest.json").write_text(json.dumps({"kind": "dedetr predictions", "files": names}))
    folder = PredictionFolder(out)
    assert folder.earlier == frozenset()
    folder.finish([])
    assert (tmp_path / "precious.txt").is_file()
