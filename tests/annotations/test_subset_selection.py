"""Subsets by number, by class shares, by shots and by folds, and subsets made again from a manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.annotations.prepared import open_dataset, read_split
from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord, PreparedDataset
from core.annotations.subsets import (
    Selection,
    describe_subset,
    find_subset,
    read_manifest,
    select,
    subsample,
    subsample_folds,
)
from core.errors import DataError, MachineError, UsageError

from .conftest import all_bytes, coco_dict, make_coco_layout, write_json

NAMES = ("ant", "bee", "cow", "dog")


def pets(num_images: int = 60) -> dict[str, Any]:
    """A COCO file: ants on every third image, many bees, few cows, a dog; some images are empty, one holds a crowd."""
    boxes = []
    for row in range(num_images):
        boxes += [(row, 1)] * (row % 3 == 0) + [(row, 2)] * (row % 5) + [(row, 3)] * (row % 20 == 7)
    boxes.append((num_images - 2, 4))
    content = coco_dict(num_images)
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    template = content["annotations"][0]
    content["annotations"] = [
        template | {"id": ident, "image_id": content["images"][row]["id"], "category_id": category_id}
        for ident, (row, category_id) in enumerate([*boxes, (0, 4)], start=1)
    ]
    content["annotations"][-1]["iscrowd"] = 1
    return content


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    root = tmp_path / "coco"
    for split, content in (("train", pets()), ("val", pets(3))):
        write_json(root / "annotations" / f"instances_{split}2017.json", content)
        (root / f"{split}2017").mkdir()
    return open_dataset(root)


def ids_of(path: Path) -> set[int]:
    return set(read_manifest(path).image_ids)


ANNOTATIONS = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=30).map(
    lambda found: AnnotationSet(
        tuple(ImageRecord(7 * row, f"{row}.png", 9, 9) for row in range(len(found))),
        tuple(
            Annotation(100 * row + number, 7 * row, category_id, (1.0, 1.0, 2.0, 2.0), 4.0, False)
            for row, labels in enumerate(found)
            for number, category_id in enumerate(labels)
        ),
        tuple(Category(number, name) for number, name in enumerate(NAMES, start=1)),
    )
)


def boxes_of(annotations: AnnotationSet, image_ids: list[int]) -> Counter[int]:
    return Counter(found.category_id for found in annotations.annotations if found.image_id in image_ids)


def backwards(annotations: AnnotationSet) -> AnnotationSet:
    return AnnotationSet(annotations.images[::-1], annotations.annotations[::-1], annotations.categories[::-1])


@given(ANNOTATIONS, st.integers(0, 3), st.booleans(), st.data())
def test_numbers_of_images_are_nested_also_in_rates(
    whole: AnnotationSet, seed: int, stratified: bool, data: st.DataObject
) -> None:
    num_all = len(whole.images)
    small, large = sorted(data.draw(st.tuples(st.integers(1, num_all), st.integers(1, num_all))))
    chosen = [
        select(Selection(num_images=number, stratified=stratified, seed=seed), whole)[0] for number in (small, large)
    ]
    assert [len(set(ids)) for ids in chosen] == [small, large]
    assert set(chosen[0]) <= set(chosen[1])
    for number, ids in zip((small, large), chosen, strict=True):
        again, _ = select(Selection(num_images=number, stratified=stratified, seed=seed), backwards(whole))
        assert set(again) == set(ids)
        by_rate, _ = select(Selection(rate=number / num_all, stratified=stratified, seed=seed), whole)
        assert abs(len(by_rate) - number) <= 1
        assert set(by_rate) <= set(ids) or set(ids) <= set(by_rate)
        if stratified and number >= len(NAMES):
            assert boxes_of(whole, ids).keys() == boxes_of(whole, [image.id for image in whole.images]).keys()


@given(ANNOTATIONS.filter(lambda whole: len(whole.annotations) > 0), st.integers(0, 3), st.integers(1, 6))
def test_shots_are_nested_and_enough_for_every_class(whole: AnnotationSet, seed: int, shots: int) -> None:
    small, large = (select(Selection(shots=number, seed=seed), whole)[0] for number in (shots, shots + 1))
    assert set(small) <= set(large)
    assert set(select(Selection(shots=shots, seed=seed), backwards(whole))[0]) == set(small)
    found, all_boxes = boxes_of(whole, small), boxes_of(whole, [image.id for image in whole.images])
    assert all(found[category.id] >= min(shots, all_boxes[category.id]) for category in whole.categories)


def test_choices_stay_what_they_are_on_every_machine(dataset: PreparedDataset) -> None:
    reports = [
        subsample(dataset, num_images=9, seed=2),
        subsample(dataset, 0.3, seed=1, stratify=True),
        subsample(dataset, shots=4),
    ]
    folds = subsample_folds(dataset, 4).folds
    found = [sorted(ids_of(report.path)) for report in (*reports, *(fold.held_out for fold in folds))]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == GOLDEN


GOLDEN = "222891e411862b04"


def test_number_of_images(dataset: PreparedDataset) -> None:
    report = subsample(dataset, num_images=6)
    assert report.path.name == "instances_train2017-6images-seed0.json"
    assert (report.name, report.num_images, report.num_parent_images) == ("6images", 6, 60)
    assert ids_of(report.path) == ids_of(subsample(dataset, 0.1).path)
    assert describe_subset(report.path).startswith("6 images of train, seed 0: 6 of 60 images, ")
    assert find_subset(dataset, "6images") == find_subset(dataset, "6-images") == report.path
    with pytest.raises(UsageError, match="61 images are asked for, the train split has 60") as raised:
        subsample(dataset, num_images=61)
    assert raised.value.where == "--num-images"


def test_chance_may_miss_a_class_and_says_so(dataset: PreparedDataset) -> None:
    by_chance, stratified = (subsample(dataset, num_images=8, stratify=stratify) for stratify in (False, True))
    assert "dog" in by_chance.missing_classes
    assert any("dog" in note and "--stratify" in note for note in by_chance.notes)
    assert by_chance.class_counts["dog"] == 0
    assert by_chance.parent_class_counts == {"ant": 20, "bee": 120, "cow": 3, "dog": 2}
    assert stratified.missing_classes == stratified.notes == ()
    assert stratified.path.name == "instances_train2017-8images-stratified-seed0.json"
    assert all(stratified.class_counts.values())


def test_stratified_shares(dataset: PreparedDataset) -> None:
    report = subsample(dataset, 0.5, stratify=True)
    assert report.num_images == 30
    assert report.class_counts["ant"] == 10
    assert abs(report.class_counts["bee"] - 60) <= 3
    assert report.class_counts["cow"] in (1, 2)
    annotations, _ = read_split(dataset, "train", report.path)
    with_boxes = {annotation.image_id for annotation in annotations.annotations}
    assert abs(len(annotations.images) - len(with_boxes) - 4) <= 1  # of 8 empty images


def test_shots(dataset: PreparedDataset) -> None:
    report = subsample(dataset, shots=3)
    assert report.path.name == "instances_train2017-3shot-seed0.json"
    assert (report.rate, report.shots, report.name) == (None, 3, "3shot")
    assert report.class_counts["ant"] >= 3 <= report.class_counts["bee"]
    assert report.class_counts["cow"] == 3
    assert "all boxes were taken of classes with fewer than 3: dog (1)" in report.notes  # the other one is a crowd
    assert any("images stay whole" in note for note in report.notes)
    assert find_subset(dataset, "3shot") == find_subset(dataset, "3-shots") == report.path
    assert describe_subset(report.path).startswith("3 boxes or more of every class, seed 0: ")
    written, whole = json.loads(report.path.read_bytes()), pets()
    chosen = ids_of(report.path)
    assert written["annotations"] == [entry for entry in whole["annotations"] if entry["image_id"] in chosen]


def test_more_shots_than_there_are_boxes_take_all(dataset: PreparedDataset) -> None:
    report = subsample(dataset, shots=10**9)
    assert report.class_counts["bee"] == 120
    assert any("ant (20), bee (120), cow (3), dog (1)" in note for note in report.notes)


def test_folds(dataset: PreparedDataset, tmp_path: Path) -> None:
    report = subsample_folds(dataset, 3, out=tmp_path / "folds")
    assert len(list((tmp_path / "folds").iterdir())) == 12
    held_out = [ids_of(fold.held_out.path) for fold in report.folds]
    assert sorted(ident for ids in held_out for ident in ids) == list(range(1, 61))
    for number, (fold, own) in enumerate(zip(report.folds, held_out, strict=True), start=1):
        assert len(own) == 20
        assert ids_of(fold.train.path) == set(range(1, 61)) - own
        assert fold.train.path.name == f"instances_train2017-fold{number}of3-seed0.json"
        assert fold.held_out.class_counts["cow"] == 1
        assert abs(fold.held_out.class_counts["bee"] - 40) <= 4
        assert describe_subset(fold.train.path).startswith(f"all folds but {number} of 3, seed 0: 40 of 60 images")
        assert describe_subset(fold.held_out.path).startswith(f"fold {number} of 3, seed 0: 20 of 60 images")
    subsample_folds(dataset, 3)
    assert find_subset(dataset, "fold2of3").name == "instances_train2017-fold2of3-seed0.json"
    assert find_subset(dataset, "fold2of3-heldout").name == "instances_train2017-fold2of3-heldout-seed0.json"
    with pytest.raises(DataError, match="60 training images cannot be parted into 61 folds"):
        subsample_folds(dataset, 61)
    with pytest.raises(UsageError, match="go to a folder"):
        subsample_folds(dataset, 3, out=tmp_path / "x.json")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({}, "--rate"),
        ({"rate": 0.5, "num_images": 3}, "--num-images"),
        ({"num_images": 3, "shots": 3}, "--shots"),
        ({"shots": 3, "from_manifest": Path("x.json")}, "--from-manifest"),
        ({"num_images": 0}, "--num-images"),
        ({"shots": -1}, "--shots"),
        ({"shots": 3, "stratify": True}, "--stratify"),
        ({"from_manifest": Path("x.json"), "stratify": True}, "--stratify"),
        ({"from_manifest": Path("x.json"), "seed": 3}, "--seed"),
        ({"shots": 3, "seed": -3}, "--seed"),
    ],
    ids=str,
)
def test_f76_what_does_not_go_together(dataset: PreparedDataset, arguments: dict[str, Any], where: str) -> None:
    before = all_bytes(dataset.root)
    with pytest.raises(UsageError) as raised:
        subsample(dataset, **arguments)
    assert raised.value.where == where
    assert all_bytes(dataset.root) == before


@pytest.mark.parametrize("num_folds", [1, 0, -2])
def test_f76_number_of_folds(dataset: PreparedDataset, num_folds: int) -> None:
    with pytest.raises(UsageError, match="--folds: must be at least 2"):
        subsample_folds(dataset, num_folds)


def test_a_dry_run_says_the_same_and_writes_nothing(dataset: PreparedDataset, tmp_path: Path) -> None:
    before = all_bytes(dataset.root)
    dry, dry_folds = subsample(dataset, shots=2, dry_run=True), subsample_folds(dataset, 3, dry_run=True)
    assert all_bytes(dataset.root) == before
    done, folds = subsample(dataset, shots=2), subsample_folds(dataset, 3)
    assert (dry.dry_run, done.dry_run) == (True, False)
    assert {**vars(dry), "dry_run": False} == vars(done)
    assert [fold.train.class_counts for fold in dry_folds.folds] == [fold.train.class_counts for fold in folds.folds]
    (tmp_path / "file").touch()
    with pytest.raises(MachineError):
        subsample(dataset, 0.5, out=tmp_path / "file" / "x.json", dry_run=True)


QUESTIONS: list[dict[str, Any]] = [
    {"rate": 0.1},
    {"rate": 0.1, "stratify": True},
    {"num_images": 7, "seed": 4},
    {"num_images": 7, "stratify": True},
    {"shots": 2},
]


@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
def test_a_manifest_makes_the_same_subset_of_a_copy(
    dataset: PreparedDataset, tmp_path: Path, asked: dict[str, Any]
) -> None:
    shutil.copytree(dataset.root, tmp_path / "elsewhere" / "copy")
    first = subsample(dataset, **asked)
    manifest = shutil.copy(first.manifest, tmp_path / "sent.json")
    again = subsample(open_dataset(tmp_path / "elsewhere" / "copy"), from_manifest=manifest)
    assert again.path.name == first.path.name
    assert again.path.read_bytes() == first.path.read_bytes()
    assert again.manifest.read_bytes() == first.manifest.read_bytes()
    assert find_subset(open_dataset(tmp_path / "elsewhere" / "copy"), again.name) == again.path


def test_a_manifest_of_a_fold(dataset: PreparedDataset) -> None:
    fold = subsample_folds(dataset, 3).folds[1]
    before = fold.held_out.path.read_bytes()
    fold.held_out.path.unlink()
    assert subsample(dataset, from_manifest=fold.held_out.manifest).path.read_bytes() == before


def test_a_manifest_on_other_annotations_of_the_same_images(dataset: PreparedDataset) -> None:
    manifest = subsample(dataset, 0.1).manifest
    better = pets()
    better["annotations"][0]["bbox"] = [1, 1, 5, 5]
    write_json(dataset.splits["train"].annotation_file, better)
    report = subsample(dataset, from_manifest=manifest)
    assert any("from another train file" in note for note in report.notes)
    assert find_subset(dataset, "0.1") == report.path  # the manifest names the new hash
    write_json(dataset.splits["train"].annotation_file, pets(3))
    with pytest.raises(DataError, match=r"of its 6 images are not in .*instances_train2017\.json: ids \d+") as raised:
        subsample(dataset, from_manifest=manifest)
    assert raised.value.where == str(manifest)


def test_a_subset_file_of_the_reference(dataset: PreparedDataset, tmp_path: Path) -> None:
    """It lists fewer images, and keeps all annotations."""
    whole = pets()
    theirs = write_json(tmp_path / "sample5.json", {**whole, "images": whole["images"][3:8]})
    report = subsample(dataset, from_manifest=theirs)
    assert report.path.name == "instances_train2017-from-sample5.json"
    assert (report.num_images, report.seed, report.rate) == (5, None, None)
    written = json.loads(report.path.read_bytes())
    assert written["images"] == whole["images"][3:8]
    assert {entry["image_id"] for entry in written["annotations"]} <= {4, 5, 6, 7, 8}
    assert describe_subset(report.path).startswith("the images of sample5.json: 5 of 60 images, ")
    assert find_subset(dataset, report.name) == report.path
    again = subsample(dataset, from_manifest=report.manifest)
    assert (again.path, again.num_images) == (report.path, 5)


def test_f06_subsets_of_such_a_file_leave_foreign_annotations_out(dataset: PreparedDataset) -> None:
    whole = pets()
    write_json(dataset.splits["train"].annotation_file, {**whole, "images": whole["images"][:5]})
    report = subsample(dataset, 1.0)
    written = json.loads(report.path.read_bytes())["annotations"]
    assert written == [entry for entry in whole["annotations"] if entry["image_id"] <= 5]
    assert sum(report.parent_class_counts.values()) == report.num_annotations == len(written)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"images": []}', '{"image_ids": []}', '{"image_ids": [1], "rate": 0.5}', "\0", "[" * 5000,
        '{"images": [{"id": "x"}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": []}',
    ],
)  # fmt: skip
def test_what_is_neither_manifest_nor_coco(dataset: PreparedDataset, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        subsample(dataset, from_manifest=path)
    assert str(path) in str(raised.value.where)
    with pytest.raises(DataError):
        subsample(dataset, from_manifest=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 3},
        {"rate": "x"},
        {"rate": 7.0},
        {"rate": None},
        {"shots": 3},
        {"seed": -1},
        {"image_ids": [1, 1]},
        {"image_ids": ["a"]},
        {"fold": 2},
        {"fold": 4, "num_folds": 3, "rate": None},
        {"what": 1},
    ],
    ids=str,
)
def test_damaged_manifests(dataset: PreparedDataset, changes: dict[str, Any]) -> None:
    report = subsample(dataset, 0.1)
    manifest = json.loads(report.manifest.read_text()) | changes
    write_json(report.manifest, manifest)
    with pytest.raises(DataError, match="not a subset's manifest"):
        find_subset(dataset, "0.1")
    with pytest.raises(DataError, match="not a subset's manifest"):
        subsample(dataset, from_manifest=report.manifest)


def test_manifests_of_rates_are_as_they_always_were(dataset: PreparedDataset) -> None:
    manifest = json.loads(subsample(dataset, 0.1).manifest.read_text())
    assert list(manifest) == [
        "format_version", "rate", "seed", "rule", "parent", "parent_sha256", "num_parent_images", "subset_sha256",
        "num_annotations", "class_counts", "image_ids",
    ]  # fmt: skip
    assert (manifest["format_version"], manifest["rate"], manifest["seed"]) == (1, 0.1, 0)
    assert (
        manifest["rule"] == "image ids sorted, shuffled by random.Random(seed), the first floor(rate * N), at least 1"
    )
    newer = json.loads(subsample(dataset, shots=3, seed=2).manifest.read_text())
    assert (newer["format_version"], newer["shots"], newer["seed"]) == (2, 3, 2)
    assert "rate" not in newer


def test_find_by_name(dataset: PreparedDataset) -> None:
    plain, stratified = (subsample(dataset, 0.1, stratify=stratify) for stratify in (False, True))
    with pytest.raises(DataError, match=r"2 subsets of rate 0\.1"):
        find_subset(dataset, "0.1")
    assert find_subset(dataset, stratified.name) == find_subset(dataset, "10pct-stratified-seed0") == stratified.path
    plain.path.unlink()
    assert find_subset(dataset, "0.1") == find_subset(dataset, "10pct") == stratified.path
    for asked, command in {
        "5shot": "--shots 5",
        "8images-stratified-seed3": "--num-images 8 --stratify --seed 3",
        "12.5pct": "--rate 0.125",
        "fold1of4": "--folds 4",
        "fold1of4-heldout": "--folds 4",
    }.items():
        with pytest.raises(DataError, match=f"no subset {asked} beside") as raised:
            find_subset(dataset, asked)
        assert raised.value.hint == f"run `dedetr subsample {command} --data {dataset.root}`"
    for asked in ("shot", "-3shot", "x" * 5000, "9" * 5000 + "shots", "3shot\n", "fold1", "\0", "٣shot"):
        with pytest.raises(DataError):
            find_subset(dataset, asked)


def test_images_without_any_box(tmp_path: Path) -> None:
    root = make_coco_layout(tmp_path / "coco")
    content = coco_dict(6)
    content["annotations"] = []
    write_json(root / "annotations" / "instances_train2017.json", content)
    dataset = open_dataset(root)
    assert subsample(dataset, num_images=3, stratify=True).num_images == 3
    assert subsample_folds(dataset, 2).folds[0].held_out.num_images == 3
    assert subsample(dataset, 0.5).missing_classes == ()
    with pytest.raises(DataError, match="no box"):
        subsample(dataset, shots=3)
