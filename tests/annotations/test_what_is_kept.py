"""What `prepare-data` does not destroy: images of its source; and what it keeps together: pictures that look alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.annotations.prepare import export, prepare
from core.annotations.prepared import open_dataset, read_split
from core.annotations.splits import SplitPlan
from core.errors import DataError, UsageError

from .conftest import all_bytes, coco_dict, make_coco_layout, make_voc, voc_xml, write_images, write_json


def make_pictures(root: Path, pictures: list[np.ndarray]) -> Path:
    """Make a Pascal VOC folder of pictures, 96 x 96, with one box each."""
    for name in ("Annotations", "JPEGImages"):
        (root / name).mkdir(parents=True)
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(root / "JPEGImages" / f"p{index:02d}.png")
        (root / "Annotations" / f"p{index:02d}.xml").write_text(voc_xml("x", [("ant", 3, 4, 20, 24)], size=(96, 96)))
    return root


def noise(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC))


def names_of(root: Path, split: str) -> set[str]:
    return {image.file_name for image in read_split(open_dataset(root), split)[0].images}


@pytest.mark.parametrize("seed", range(3))
def test_pictures_that_look_alike_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    brighter = [np.clip(noise(number).astype(int) + 9, 0, 255).astype(np.uint8) for number in range(2)]
    source = make_pictures(tmp_path / "voc", [*(noise(number) for number in range(18)), *brighter])
    report = prepare(source, tmp_path / "data", plan=SplitPlan(0.5, seed))
    assert "pictures that look almost like another, kept on its side of the split: 2" in report.notes
    val = names_of(tmp_path / "data", "val")
    assert ("p00.png" in val) == ("p18.png" in val)
    assert ("p01.png" in val) == ("p19.png" in val)


def test_the_pictures_of_a_camera_that_never_moves_can_be_split(tmp_path: Path) -> None:
    frames = []
    for index in range(30):
        frame = noise(0).copy()
        frame[40:46, 3 * index : 3 * index + 6] = 255
        frames.append(frame)
    report = prepare(make_pictures(tmp_path / "voc", frames), tmp_path / "data", plan=SplitPlan(0.2))
    assert [split.num_images for split in report.splits] == [24, 6]
    assert any("too many to keep on one side: 30" in note and "--group" in note for note in report.notes)


def test_folds_keep_look_alikes_of_train_and_val_together(tmp_path: Path) -> None:
    brighter = np.clip(noise(3).astype(int) + 9, 0, 255).astype(np.uint8)
    source = make_pictures(tmp_path / "voc", [*(noise(number) for number in range(11)), brighter])
    lists = source / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(f"p{index:02d}" for index in range(8)))
    (lists / "val.txt").write_text("\n".join(f"p{index:02d}" for index in range(8, 12)))
    prepare(source, tmp_path / "folds", num_folds=3)
    for number in (1, 2, 3):
        val = {name.rpartition("/")[2] for name in names_of(tmp_path / "folds" / f"fold-{number}", "val")}
        assert ("p03.png" in val) == ("p11.png" in val)


def test_an_archive_is_not_unpacked_to_the_folder_that_is_then_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.make_archive(str(tmp_path / "data"), "zip", make_coco_layout(tmp_path / "source"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="images of the source lie in it"):
        prepare(Path("data.zip"), Path("data"))
    report = prepare(Path("data.zip"), Path("prepared"))
    assert any("was unpacked to data" in note for note in report.notes)
    assert len(read_split(open_dataset(Path("prepared")), "train")[0].images) == 5
    assert all((Path("data") / "train2017" / name).is_file() for name in names_of(Path("prepared"), "train"))


def test_images_of_an_earlier_data_set_are_not_replaced(tmp_path: Path) -> None:
    prepare(make_voc(tmp_path / "voc"), tmp_path / "data", copy_images=True)
    prepare(tmp_path / "data", tmp_path / "folds", num_folds=2)
    before = all_bytes(tmp_path)
    with pytest.raises(UsageError, match="images of the source lie in it"):
        prepare(tmp_path / "folds" / "fold-1", tmp_path / "data")
    with pytest.raises(UsageError, match="not empty"):
        export(tmp_path / "folds" / "fold-1", tmp_path / "data", "yolo")
    assert all_bytes(tmp_path) == before


def test_the_lesser_half_of_the_boxes_is_no_data_set(tmp_path: Path) -> None:
    source = make_coco_layout(tmp_path / "coco")
    file = source / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for row, annotation in enumerate(content["annotations"]):
        annotation["category_id"] += 1 if row < 7 else 0
    write_json(file, content)
    with pytest.raises(DataError, match="7 of 12 boxes cannot be used") as raised:
        prepare(source, tmp_path / "data", drop_invalid=True)
    assert raised.value.code == "F07"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("file", ["result.json", "annotations/instances_default.json", "_annotations.coco.json"])
@pytest.mark.parametrize("prefix", ["", "images/"])
def test_what_other_programs_write_for_all_images(tmp_path: Path, file: str, prefix: str) -> None:
    content = coco_dict(6)
    write_images(tmp_path / "set" / "images", content)
    for image in content["images"]:
        image["file_name"] = prefix + image["file_name"]
    path = write_json(tmp_path / "set" / file, content)
    for source in (tmp_path / "set", path):
        report = prepare(source, tmp_path / "data")
        assert (report.format, sum(split.num_images for split in report.splits)) == ("coco", 6)


def test_files_that_macos_leaves_are_no_annotations(tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "voc")
    (folder / "Annotations" / "._a0.xml").write_bytes(b"\0\5\26\7")
    assert sum(split.num_images for split in prepare(folder, tmp_path / "data").splits) == 6


def test_formats_are_named_in_any_case(tmp_path: Path) -> None:
    assert prepare(make_voc(tmp_path / "voc"), tmp_path / "data", format="VOC").format == "voc"
