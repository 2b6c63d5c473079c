from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.annotations.prepared import open_dataset, read_split
from core.annotations.records import AnnotationSet, ImageRecord, PreparedDataset
from core.annotations.subsets import Selection, describe_subset, find_subset, read_manifest, select, subsample
from core.annotations.subsets.selection import percent
from core.errors import DataError, MachineError, UsageError
from core.files import sha256_of

from .conftest import coco_dict, make_coco_layout, write_json
from .test_coco import VALUES
from .test_prepared import make_prepared


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    root = make_coco_layout(tmp_path / "coco")
    write_json(root / "annotations" / "instances_train2017.json", coco_dict(100))
    return open_dataset(root)


def content(path: Path) -> Any:
    return json.loads(path.read_bytes())


def choose(image_ids: list[int], rate: float, seed: int) -> set[int]:
    images = tuple(ImageRecord(ident, f"{ident}.png", 9, 9) for ident in image_ids)
    chosen, _ = select(Selection(rate=rate, seed=seed), AnnotationSet(images, (), ()))
    assert len(set(chosen)) == len(chosen)
    return set(chosen)


@given(
    image_ids=st.lists(st.integers(), min_size=1, max_size=50, unique=True),
    rates=st.tuples(st.floats(1e-9, 1), st.floats(1e-9, 1)),
    seed=st.integers(0, 3),
)
def test_nested(image_ids: list[int], rates: tuple[float, float], seed: int) -> None:
    small, large = (choose(image_ids, rate, seed) for rate in sorted(rates))
    assert small <= large <= set(image_ids)
    assert len(small) >= 1
    assert choose(image_ids[::-1], min(rates), seed) == small


@pytest.mark.parametrize(("rate", "num_images"), [(0.01, 1182), (0.02, 2365), (0.05, 5914), (0.1, 11828), (1, 118287)])
def test_sizes_of_the_paper(rate: float, num_images: int) -> None:
    assert len(choose(list(range(118287)), rate, 0)) == num_images


def test_decimal_rates_are_exact() -> None:
    assert [len(choose(list(range(100)), percent / 100, 0)) for percent in range(1, 101)] == list(range(1, 101))


def test_the_published_choice_stays_what_it_is() -> None:
    assert choose(list(range(0, 100, 5)), 0.25, 0) == {0, 50, 70, 80, 90}
    assert choose(list(range(0, 100, 5)), 0.25, 7) == {35, 55, 75, 85, 90}


@given(st.floats(0, 1, exclude_min=True))
def test_every_rate_has_its_own_name(rate: float) -> None:
    assert float(percent(rate)) == pytest.approx(rate * 100)
    assert percent(rate) != percent(rate / 3)


@pytest.mark.parametrize(
    ("rate", "name"),
    [(0.05, "5"), (0.1, "10"), (1.0, "100"), (1, "100"), (0.125, "12.5"), (1e-7, "0.00001"), (0.005, "0.5")],
)
def testpercent(rate: float, name: str) -> None:
    assert percent(rate) == name


def test_subset_file(dataset: PreparedDataset) -> None:
    report = subsample(dataset, 0.05)
    parent, subset = content(dataset.splits["train"].annotation_file), content(report.path)
    assert report.path == dataset.root / "annotations" / "instances_train2017-5pct-seed0.json"
    assert (report.num_images, report.num_parent_images) == (5, 100)
    assert subset["images"] == [image for image in parent["images"] if image in subset["images"]]
    ids = {image["id"] for image in subset["images"]}
    assert subset["annotations"] == [a for a in parent["annotations"] if a["image_id"] in ids]
    assert subset["categories"] == parent["categories"]
    assert subset["info"] == {"year": 2024}
    assert report.num_annotations == len(subset["annotations"]) == sum(report.class_counts.values())
    annotations, findings = read_split(dataset, "train", report.path)
    assert len(annotations.images) == 5
    assert findings.unlisted_annotations == 0


def test_manifest(dataset: PreparedDataset) -> None:
    report = subsample(dataset, 0.05, seed=3)
    manifest = content(report.manifest)
    assert report.manifest.name == "instances_train2017-5pct-seed3.manifest.json"
    assert manifest["parent"] == "instances_train2017.json"
    assert (manifest["rate"], manifest["seed"]) == (0.05, 3)
    assert manifest["image_ids"] == [image["id"] for image in content(report.path)["images"]]
    assert manifest["class_counts"] == report.class_counts
    assert report.num_images == 5
    expected = f"5 % of train, seed 3: 5 of 100 images, {report.num_annotations} annotations"
    assert describe_subset(report.path) == expected


def test_name_in_a_prepared_data_set(tmp_path: Path) -> None:
    report = subsample(open_dataset(make_prepared(tmp_path / "data")), 0.5)
    assert report.path.name == "train-50pct-seed0.json"
    assert report.num_images == 2


def test_f82_equal_bytes(dataset: PreparedDataset) -> None:
    report = subsample(dataset, 0.3)
    first = report.path.read_bytes(), report.manifest.read_bytes()
    subsample(dataset, 0.3)
    assert (report.path.read_bytes(), report.manifest.read_bytes()) == first


def test_seeds_differ(dataset: PreparedDataset) -> None:
    chosen = [tuple(content(subsample(dataset, 0.1, seed).manifest)["image_ids"]) for seed in range(3)]
    assert len(set(chosen)) == 3


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, 5, float("nan"), float("inf")])
def test_f76_rate(dataset: PreparedDataset, rate: float) -> None:
    with pytest.raises(UsageError) as raised:
        subsample(dataset, rate)
    assert raised.value.where == "--rate"
    with pytest.raises(UsageError) as raised:
        find_subset(dataset, str(rate))
    assert raised.value.where == "--subset"


def test_f76_seed(dataset: PreparedDataset) -> None:
    with pytest.raises(UsageError, match="--seed"):
        subsample(dataset, 0.1, -1)


def test_out(dataset: PreparedDataset, tmp_path: Path) -> None:
    named = subsample(dataset, 0.1, out=tmp_path / "deep" / "mine.json")
    assert named.manifest == tmp_path / "deep" / "mine.manifest.json"
    assert subsample(dataset, 0.1, out=tmp_path / "deep").path.name == "instances_train2017-10pct-seed0.json"
    subsample(dataset, 0.2, out=named.path)  # our own file may be replaced
    assert find_subset(dataset, str(named.path)) == named.path


def test_out_that_is_not_ours(dataset: PreparedDataset) -> None:
    train = dataset.splits["train"].annotation_file
    before = train.read_bytes()
    with pytest.raises(UsageError, match="did not make it"):
        subsample(dataset, 0.1, out=train)
    assert train.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_f71_read_only_layout(dataset: PreparedDataset) -> None:
    folder = dataset.root / "annotations"
    folder.chmod(0o500)
    try:
        with pytest.raises(MachineError):
            subsample(dataset, 0.1)
    finally:
        folder.chmod(0o700)


def test_f71_file_in_the_way(dataset: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError):
        subsample(dataset, 0.1, out=tmp_path / "file" / "x.json")


def test_find_by_rate_and_by_file(dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = subsample(dataset, 0.05, seed=2)
    assert find_subset(dataset, "0.05") == find_subset(dataset, "5e-2") == report.path
    assert find_subset(dataset, report.path.name) == report.path
    monkeypatch.chdir(report.path.parent)
    assert find_subset(dataset, report.path.name) == Path(report.path.name)


def test_find_none(dataset: PreparedDataset) -> None:
    with pytest.raises(DataError, match=r"no subset of rate 0\.05") as raised:
        find_subset(dataset, "0.05")
    assert raised.value.hint == f"run `dedetr subsample --rate 0.05 --data {dataset.root}`"
    with pytest.raises(DataError, match=r"no subset file mine\.json"):
        find_subset(dataset, "mine.json")


def test_find_several(dataset: PreparedDataset) -> None:
    subsample(dataset, 0.05, seed=1)
    subsample(dataset, 0.05, seed=12)
    subsample(dataset, 0.5, seed=1)
    with pytest.raises(DataError, match=r"2 subsets of rate 0\.05.*seed1\.json.*seed12\.json"):
        find_subset(dataset, "0.05")


def test_find_refuses_what_was_changed(dataset: PreparedDataset) -> None:
    report = subsample(dataset, 0.05)
    report.path.write_bytes(report.path.read_bytes() + b"\n")
    with pytest.raises(DataError, match="subset file was changed"):
        find_subset(dataset, "0.05")
    subsample(dataset, 0.05)
    write_json(dataset.splits["train"].annotation_file, coco_dict(99))
    with pytest.raises(DataError, match=r"made from another instances_train2017\.json"):
        find_subset(dataset, "0.05")


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
def test_find_with_a_damaged_manifest(dataset: PreparedDataset, text: str | None) -> None:
    report = subsample(dataset, 0.05)
    if text is None:
        report.manifest.unlink()
    else:
        report.manifest.write_text(text)
    with pytest.raises(DataError):
        find_subset(dataset, "0.05")


def test_file_without_a_manifest(dataset: PreparedDataset, tmp_path: Path) -> None:
    path = write_json(tmp_path / "sample.json", coco_dict(3))
    assert find_subset(dataset, str(path)) == path
    assert "without a manifest" in describe_subset(path)


def test_fault_in_the_train_file(dataset: PreparedDataset) -> None:
    spoilt = coco_dict(5)
    spoilt["annotations"][0]["bbox"] = [1, 2, 3]
    write_json(dataset.splits["train"].annotation_file, spoilt)
    with pytest.raises(DataError, match=r"annotations\[0\].bbox"):
        subsample(dataset, 0.5)
    assert not list((dataset.root / "annotations").glob("*seed*"))


@given(rate=st.floats(0.05, 1), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everything_of_the_chosen_stays(dataset: PreparedDataset, rate: float, data: st.DataObject) -> None:
    whole = coco_dict(9)
    for entry in [*whole["images"], *whole["annotations"]]:
        entry |= data.draw(st.dictionaries(st.text(max_size=3).map("x{}".format), VALUES, max_size=2))
    whole["annotations"][0]["bbox"][2] = 0  # dropped by whoever reads it, not from the file
    parent = dataset.splits["train"].annotation_file
    write_json(parent, json.dumps(whole, ensure_ascii=data.draw(st.booleans())))
    report = subsample(dataset, rate)
    ids = set(read_manifest(report.path).image_ids)
    images = [entry for entry in whole["images"] if entry["id"] in ids]
    annotations = [entry for entry in whole["annotations"] if entry["image_id"] in ids]
    assert json.dumps(content(report.path)) == json.dumps({**whole, "images": images, "annotations": annotations})
    assert len(images) == report.num_images
    assert len(annotations) == report.num_annotations == sum(report.class_counts.values())


def test_what_is_strict_json_is_copied_to_the_letter(dataset: PreparedDataset) -> None:
    whole = coco_dict(5)
    sections = {
        key: f"[{','.join(json.dumps(entry, indent=1) for entry in value)}]"
        for key, value in whole.items()
        if key not in ("info", "licenses")
    }
    sections |= {"info": '{"\\u0079ear" : 1.0e3, "by": "Zoë"}', "licenses": "[ ]"}
    written = "{" + ",".join(f'"{key}":{sections[key]}' for key in sorted(sections)) + "}"
    written = written.replace("10.5", "1.050E1")
    write_json(dataset.splits["train"].annotation_file, written)
    assert subsample(dataset, 1).path.read_text(encoding="utf-8") == written + "\n"


def test_all_images_in_a_subset_of_the_whole(dataset: PreparedDataset) -> None:
    report = subsample(dataset, 1)
    assert content(report.path) == content(dataset.splits["train"].annotation_file)
    manifest = read_manifest(report.path)
    assert manifest.subset_sha256 == sha256_of(report.path)
    assert manifest.parent_sha256 == sha256_of(dataset.splits["train"].annotation_file)
