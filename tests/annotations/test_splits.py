from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.annotations.content import Source, SplitContent
from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.annotations.splits import SplitPlan, fold_source, split_source
from core.errors import DataError, UsageError

CLASSES = (Category(1, "cat"), Category(5, "dog"), Category(3, "emu"))
BOX = (1.0, 1.0, 2.0, 2.0)


def content(labels: dict[str, str], root: Path = Path("photos"), first_id: int = 1) -> SplitContent:
    """Images by name, with a box for every letter: c is a cat, d a dog, e an emu."""
    ids = {category.name[0]: category.id for category in CLASSES}
    images = tuple(ImageRecord(first_id + row, name, 9, 9) for row, name in enumerate(labels))
    boxes = [(image.id, ids[letter]) for image in images for letter in labels[image.file_name]]
    annotations = tuple(
        Annotation(first_id + row, image_id, category_id, BOX, 4.0, False)
        for row, (image_id, category_id) in enumerate(boxes)
    )
    return SplitContent(AnnotationSet(images, annotations, CLASSES), root)


def source(**splits: SplitContent) -> Source:
    return Source(Path("photos"), "coco", splits)


def names(part: SplitContent) -> list[str]:
    return sorted(image.file_name for image in part.annotations.images)


def boxes(part: SplitContent) -> dict[str, int]:
    counts = Counter(annotation.category_id for annotation in part.annotations.annotations)
    return {category.name: counts[category.id] for category in CLASSES}


PETS = {f"n{row:02d}.jpg": "ccd" if row % 2 else "e" * (row % 10 == 0) for row in range(40)}


@given(
    labels=st.dictionaries(st.text("abcü/._-", min_size=1, max_size=4), st.text("cde", max_size=4), min_size=2),
    rate=st.floats(0.001, 0.999),
    seed=st.integers(0, 5),
    order=st.randoms(),
)
def test_parts_are_whole_and_independent_of_order(
    labels: dict[str, str], rate: float, seed: int, order: random.Random
) -> None:
    whole = content(labels)
    splits, _ = split_source(source(train=whole), SplitPlan(rate, seed), {})
    assert list(splits) == ["train", "val"]
    parts = {name: names(part) for name, part in splits.items()}
    assert sorted(parts["train"] + parts["val"]) == sorted(labels)
    assert parts["train"]
    assert parts["val"]
    assert abs(len(parts["val"]) - rate * len(labels)) <= 1
    for part in splits.values():
        assert [image for image in whole.annotations.images if image in part.annotations.images] == list(
            part.annotations.images
        )
    shuffled = list(labels.items())
    order.shuffle(shuffled)
    again, _ = split_source(source(train=content(dict(shuffled))), SplitPlan(rate, seed), {})
    assert {name: names(part) for name, part in again.items()} == parts


def test_classes_and_images_without_objects_are_shared_out() -> None:
    splits, notes = split_source(source(train=content(PETS)), SplitPlan(0.25, test_rate=0.25), {})
    assert list(splits) == ["train", "val", "test"]
    assert boxes(splits["train"]) == {"cat": 20, "dog": 10, "emu": 2}
    for name in ("val", "test"):
        assert boxes(splits[name]) == {"cat": 10, "dog": 5, "emu": 1}
        assert splits[name].findings.images_without_objects == 4
    assert notes == [
        f"the source has no {name} split: 10 of 40 images were put aside for it, seed 0, stratified by class"
        for name in ("val", "test")
    ]


def test_seeds_differ_and_stay_what_they_are() -> None:
    chosen = [names(split_source(source(train=content(PETS)), SplitPlan(0.1, seed), {})[0]["val"]) for seed in range(4)]
    assert len({tuple(part) for part in chosen}) == 4
    assert chosen[0] == GOLDEN_VAL


GOLDEN_VAL = ["n01.jpg", "n22.jpg", "n26.jpg", "n33.jpg"]


def test_a_class_too_rare_for_val_is_named() -> None:
    labels = {f"{row}.jpg": "c" * (row > 1) + "d" * (row == 0) for row in range(10)}
    _, notes = split_source(source(train=content(labels)), SplitPlan(0.2), {})
    assert "val has no box of: dog (1 in all)" in notes
    assert not any("emu" in note for note in notes)


def test_own_splits_stay_and_only_what_is_missing_is_put_aside() -> None:
    labels = {f"{row}.jpg": "c" for row in range(10)}
    val, test = content({"v.jpg": "c"}, first_id=90), content({"t.jpg": "d"}, first_id=95)
    whole = source(train=content(labels), val=val, test=test)
    assert split_source(whole, SplitPlan(), {}) == (dict(whole.splits), [])
    assert split_source(source(val=val), SplitPlan(), {}) == ({"val": val}, [])
    splits, _ = split_source(source(train=content(labels), val=val), SplitPlan(test_rate=0.3), {})
    assert [(name, len(names(part))) for name, part in splits.items()] == [("train", 7), ("val", 1), ("test", 3)]
    splits, _ = split_source(source(train=content(labels), test=test), SplitPlan(), {})
    assert [(name, len(names(part))) for name, part in splits.items()] == [("train", 8), ("val", 2), ("test", 1)]


TRAIN, VAL, TEST = (content({f"{name}{row}.jpg": "cd" for row in range(8)}) for name in ("a", "b", "c"))


@pytest.mark.parametrize(
    ("splits", "plan", "where", "words"),
    [
        ({"train": TRAIN, "val": VAL}, SplitPlan(0.5), "--val", "own val"),
        ({"train": TRAIN, "test": TEST}, SplitPlan(test_rate=0.5), "--test", "own test"),
        ({"val": VAL}, SplitPlan(test_rate=0.5), "--test", "no train"),
        *(({"train": TRAIN}, SplitPlan(rate), "--val", "between 0 and 1") for rate in (0, 1, -0.1, 1.5, float("nan"))),
        ({"train": TRAIN}, SplitPlan(test_rate=float("inf")), "--test", "between 0 and 1"),
        ({"train": TRAIN}, SplitPlan(0.5, test_rate=0.5), "--test", "nothing to train on"),
        ({"train": TRAIN}, SplitPlan(test_rate=0.9), "--test", "0.2 for val and 0.9 for test"),
        ({"train": TRAIN}, SplitPlan(group="("), "--group", "not a regular expression"),
        ({"train": TRAIN}, SplitPlan(group="a{999999999999}"), "--group", "not a regular expression"),
        ({"train": TRAIN}, SplitPlan(group="x"), "--group", "matches no file name"),
        ({"train": TRAIN, "val": VAL}, SplitPlan(group="a"), "--group", "nothing is put aside"),
    ],
    ids=str,
)  # fmt: skip
def test_f76_plans_that_cannot_be_carried_out(
    splits: dict[str, SplitContent], plan: SplitPlan, where: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        split_source(source(**splits), plan, {})
    assert raised.value.where == where


def test_too_few_images() -> None:
    with pytest.raises(DataError, match="1 image cannot be split into train and val"):
        split_source(source(train=content({"a.jpg": "c"})), SplitPlan(), {})
    with pytest.raises(DataError, match="2 images cannot be split into train and val and test"):
        split_source(source(train=content({"a.jpg": "c", "b.jpg": "c"})), SplitPlan(test_rate=0.1), {})
    three = content({"a.jpg": "c", "b.jpg": "c", "d.jpg": ""})
    splits, _ = split_source(source(train=three), SplitPlan(0.6, test_rate=0.39), {})
    assert [len(names(part)) for part in splits.values()] == [1, 1, 1]
    with pytest.raises(DataError, match="8 images in 1 group cannot be split"):
        split_source(source(train=TRAIN), SplitPlan(group="a"), {})


def test_f27_repeated_pictures_stay_together() -> None:
    whole = content({f"{row}.jpg": "c" for row in range(10)})
    repeats = {("train", f"{row + 5}.jpg"): ("train", f"{row}.jpg") for row in range(5)}
    other = {("test", "8.jpg"): ("train", "0.jpg")}
    _, notes = split_source(source(train=whole, test=TEST), SplitPlan(0.4), other)
    assert not any("repeat" in note for note in notes)
    for seed in range(5):
        splits, notes = split_source(source(train=whole), SplitPlan(0.4, seed), repeats)
        val = names(splits["val"])
        assert (len(names(splits["train"])), len(val)) == (6, 4)
        assert all((f"{row}.jpg" in val) == (f"{row + 5}.jpg" in val) for row in range(5))
        assert "pictures that repeat another, kept on its side of the split: 5" in notes


FILE_NAMES = st.tuples(st.sampled_from("abcdef"), st.integers(0, 30)).map(lambda pair: f"video-{pair[0]}/{pair[1]}.jpg")


@given(
    labels=st.dictionaries(FILE_NAMES, st.text("cde", max_size=3), min_size=8, max_size=40),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_groups_and_repeats_are_never_parted(labels: dict[str, str], seed: int, data: st.DataObject) -> None:
    group_of = {name: name.split("/")[0] for name in labels}
    repeated = data.draw(st.lists(st.tuples(st.sampled_from(sorted(labels)), st.sampled_from(sorted(labels)))))
    repeats = {("train", a): ("train", b) for a, b in repeated if a != b}
    plan = SplitPlan(0.3, seed, group=r"(video-\w)")
    try:
        splits, _ = split_source(source(train=content(labels)), plan, repeats)
    except DataError:  # all of one group
        return
    sides = [names(part) for part in splits.values()]
    assert sorted(sides[0] + sides[1]) == sorted(labels)
    assert sides[0]
    assert sides[1]
    assert not {group_of[name] for name in sides[0]} & {group_of[name] for name in sides[1]}
    assert all((a in sides[0]) == (b in sides[0]) for (_, a), (_, b) in repeats.items())


@pytest.mark.parametrize(
    ("pattern", "num_groups", "num_alone"), [("^[a-z]+", 2, 2), ("^([a-z])[a-z]*-", 1, 2), ("(x)?[a-z]+-", 2, 2)]
)
def test_what_a_pattern_groups(pattern: str, num_groups: int, num_alone: int) -> None:
    labels = {"cow-1.jpg": "c", "cow-2.jpg": "c", "cat-1.jpg": "d", "cat-2.jpg": "", "1.jpg": "c", "2.jpg": "e"}
    _, notes = split_source(source(train=content(labels)), SplitPlan(group=pattern), {})
    assert (
        f"groups of images, each kept on one side: {num_groups}; "
        f"images that the pattern does not match, each by itself: {num_alone}"
    ) in notes


@given(
    labels=st.dictionaries(FILE_NAMES, st.text("cde", max_size=3), min_size=6, max_size=40),
    num_folds=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_folds_hold_every_image_once(labels: dict[str, str], num_folds: int, seed: int) -> None:
    folds = fold_source(source(train=content(labels), test=TEST), num_folds, SplitPlan(seed=seed), {})
    assert len(folds) == num_folds
    vals = [names(splits["val"]) for splits, _ in folds]
    assert sorted(name for val in vals for name in val) == sorted(labels)
    assert max(map(len, vals)) - min(map(len, vals)) <= 1
    for splits, _ in folds:
        assert list(splits) == ["train", "val", "test"]
        assert splits["test"] is TEST
        assert sorted(names(splits["train"]) + names(splits["val"])) == sorted(labels)
        whole = Counter(boxes(content(labels)))
        assert Counter(boxes(splits["train"])) + Counter(boxes(splits["val"])) == +whole


def test_folds_share_classes_and_keep_groups() -> None:
    for splits, notes in fold_source(source(train=content(PETS)), 4, SplitPlan(), {}):
        assert boxes(splits["val"]) == {"cat": 10, "dog": 5, "emu": 1}
        assert notes[0].endswith("of 4: 10 of 40 images are its val split, seed 0, stratified by class")
    grouped = {f"{group}-{row}.jpg": "cd" for group in "abcd" for row in range(5)}
    folds = fold_source(source(train=content(grouped)), 4, SplitPlan(group="^."), {})
    assert sorted({name[0] for name in names(splits["val"])}.pop() for splits, _ in folds) == list("abcd")
    with pytest.raises(DataError, match="20 images in 4 groups cannot be split into 5 folds"):
        fold_source(source(train=content(grouped)), 5, SplitPlan(group="^."), {})


def test_folds_take_the_source_s_own_val_images_too(tmp_path: Path) -> None:
    root = tmp_path / "set"
    train = content({"same.jpg": "c", "b.jpg": "d", "c.jpg": ""}, root / "train")
    val = content({"same.jpg": "e", "d.jpg": "d"}, root / "val")  # with the same ids
    repeats = {("val", "d.jpg"): ("train", "b.jpg")}
    folds = fold_source(source(train=train, val=val), 2, SplitPlan(), repeats)
    for splits, _ in folds:
        both = names(splits["train"]) + names(splits["val"])
        assert sorted(both) == ["train/b.jpg", "train/c.jpg", "train/same.jpg", "val/d.jpg", "val/same.jpg"]
        assert ("val/d.jpg" in names(splits["val"])) == ("train/b.jpg" in names(splits["val"]))
        assert splits["val"].image_root == root
        images = [image for part in splits.values() for image in part.annotations.images]
        assert len({image.id for image in images}) == 5
        owners = {image.id: image.file_name for image in images}
        found = {
            (owners[annotation.image_id], annotation.category_id)
            for part in splits.values()
            for annotation in part.annotations.annotations
        }
        assert found == {("train/same.jpg", 1), ("train/b.jpg", 5), ("val/same.jpg", 3), ("val/d.jpg", 5)}
    shared = content({"e.jpg": "c"}, root / "train", first_id=50)
    splits, _ = fold_source(source(train=train, val=shared), 2, SplitPlan(), {})[0]
    assert sorted(image.id for part in splits.values() for image in part.annotations.images) == [1, 2, 3, 50]
    assert splits["train"].image_root == root / "train"


def test_folds_leave_a_test_split_aside() -> None:
    folds = fold_source(source(train=content(PETS)), 3, SplitPlan(test_rate=0.25), {})
    tests = [names(splits["test"]) for splits, _ in folds]
    assert tests == [tests[0]] * 3
    assert len(tests[0]) == 10
    vals = [name for splits, _ in folds for name in names(splits["val"])]
    assert sorted(vals + tests[0]) == sorted(PETS)
    assert any("10 of 40 images were put aside" in note for note in folds[2][1])


@pytest.mark.parametrize(
    ("num_folds", "plan", "where"),
    [
        (1, SplitPlan(), "--folds"),
        (0, SplitPlan(), "--folds"),
        (3, SplitPlan(0.2), "--val"),
        (3, SplitPlan(test_rate=1.2), "--test"),
        (3, SplitPlan(group="["), "--group"),
    ],
)
def test_f76_folds_that_cannot_be_made(num_folds: int, plan: SplitPlan, where: str) -> None:
    with pytest.raises(UsageError) as raised:
        fold_source(source(train=TRAIN), num_folds, plan, {})
    assert raised.value.where == where
    with pytest.raises(UsageError, match="own test"):
        fold_source(source(train=TRAIN, test=TEST), 2, SplitPlan(test_rate=0.1), {})
    with pytest.raises(UsageError, match="no train"):
        fold_source(source(test=TEST), 2, SplitPlan(), {})
