from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.annotations import demo
from core.annotations.content import SplitContent
from core.errors import DataError

from .conftest import all_bytes


def digest(folder: Path) -> str:
    content = b"".join(name.encode() + data for name, data in all_bytes(folder).items())
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SplitContent]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.draw_demo_splits(folder, num_train=40, num_val=12)


def test_equal_bytes_for_a_seed_and_others_for_another(
    tmp_path: Path, drawn: tuple[Path, dict[str, SplitContent]]
) -> None:
    again = demo.draw_demo_splits(tmp_path / "a", num_train=40, num_val=12)
    assert digest(tmp_path / "a") == digest(drawn[0])
    assert again["val"].annotations == drawn[1]["val"].annotations
    demo.draw_demo_splits(tmp_path / "b", seed=1, num_train=40, num_val=12)
    assert digest(tmp_path / "b") != digest(drawn[0])


def test_what_is_promised(drawn: tuple[Path, dict[str, SplitContent]]) -> None:
    train, val = drawn[1]["train"].annotations, drawn[1]["val"].annotations
    assert [category.name for category in train.categories] == list(demo.CLASS_HUES)
    assert not {image.id for image in train.images} & {image.id for image in val.images}
    numbers = [len(annotations) for annotations in train.by_image().values()]
    assert max(numbers) <= 5
    assert numbers.count(0) == 2
    assert {annotation.category_id for annotation in train.annotations} == set(range(1, 7))
    assert len({(image.width, image.height) for image in train.images}) == 6
    assert all((drawn[0] / image.file_name).is_file() for image in train.images)


def test_boxes_lie_in_the_picture_and_have_sensible_sizes(drawn: tuple[Path, dict[str, SplitContent]]) -> None:
    for content in drawn[1].values():
        sizes = {image.id: (image.width, image.height) for image in content.annotations.images}
        for annotation in content.annotations.annotations:
            left, top, width, height = annotation.box_xywh_px
            image_width, image_height = sizes[annotation.image_id]
            assert left >= 0
            assert top >= 0
            assert left + width <= image_width
            assert top + height <= image_height
            assert 0.12 < max(width, height) / min(image_width, image_height) < 0.75


def test_boxes_are_tight(drawn: tuple[Path, dict[str, SplitContent]]) -> None:
    """On pictures with one shape, its colourful pixels fill the box and nothing outside it."""
    folder, splits = drawn
    annotations = splits["train"].annotations
    checked = 0
    for image in annotations.images:
        own = annotations.by_image()[image.id]
        if len(own) != 1:
            continue
        pixels = np.asarray(Image.open(folder / image.file_name)).astype(int)
        colourful = pixels.max(axis=2) - pixels.min(axis=2) > 80
        rows, columns = np.flatnonzero(colourful.any(axis=1)), np.flatnonzero(colourful.any(axis=0))
        left, top, width, height = own[0].box_xywh_px
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # Star tips and the like fade over a pixel or two.
        assert np.abs(edges - [left, top, left + width, top + height]).max() <= 3
        checked += 1
    assert checked >= 4


def test_unlabelled_pictures(tmp_path: Path) -> None:
    paths = demo.draw_unlabelled(tmp_path / "images")
    assert len(paths) == 6
    first = all_bytes(tmp_path)
    demo.draw_unlabelled(tmp_path / "images")
    assert all_bytes(tmp_path) == first
    (tmp_path / "images" / "mine.png").touch()
    with pytest.raises(DataError, match="other files"):
        demo.draw_unlabelled(tmp_path / "images")
