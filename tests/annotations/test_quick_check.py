from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from core.annotations.checks import quick
from core.annotations.checks.images import check_images
from core.annotations.checks.quick import check_images_quickly, remembered_check
from core.annotations.images import check_image
from core.annotations.records import AnnotationSet, Category, ImageRecord
from core.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dedetr" / "checked"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/ü c.png"):
        Image.new("RGB", (8, 6), (90, 40, 200)).save(folder / name)
    return folder


def _annotations(width: int = 8) -> AnnotationSet:
    names = ("a.png", "b.jpg", "sub/ü c.png")
    images = tuple(ImageRecord(index, name, width, 6) for index, name in enumerate(names))
    return AnnotationSet(images, (), (Category(1, "thing"),))


def _looked_at(root: Path, annotations: AnnotationSet | None = None) -> list[str]:
    """Check all images and return those whose file was looked at."""
    names: list[str] = []

    def check(path: Path, expected_size: tuple[int, int]) -> None:
        names.append(path.relative_to(root).as_posix())
        check_image(path, expected_size)

    with remembered_check(root, check) as once:
        check_images("train", annotations or _annotations(), root, check=once)
    return names


ALL = ["a.png", "b.jpg", "sub/ü c.png"]


def test_what_was_good_is_not_looked_at_again(root: Path, cache: Path) -> None:
    assert _looked_at(root) == ALL
    assert _looked_at(root) == []
    assert check_images_quickly("train", _annotations(), root) == _annotations()
    assert len(list(cache.iterdir())) == 1
    # By whatever name the folder is called.
    link = root.with_name("link")
    link.symlink_to(root)
    assert _looked_at(link) == []


def test_a_changed_file_is_looked_at(root: Path) -> None:
    _looked_at(root)
    path = root / "b.jpg"
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert _looked_at(root) == ["b.jpg"]
    assert _looked_at(root) == []
    with path.open("ab") as stream:
        stream.write(b"\0")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert _looked_at(root) == ["b.jpg"]


def test_another_stated_size_is_looked_at(root: Path) -> None:
    _looked_at(root)
    for _ in range(2):  # what is wrong is never remembered
        with pytest.raises(DataError) as caught:
            check_images_quickly("train", _annotations(width=9), root)
        assert caught.value.code == "F25"
    assert _looked_at(root) == []


def test_faults_are_found_each_time_and_the_rest_is_remembered(root: Path) -> None:
    (root / "a.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            check_images_quickly("train", _annotations(), root)
        assert caught.value.code == "F21"
    (root / "a.png").unlink()
    with pytest.raises(DataError) as caught:
        check_images_quickly("train", _annotations(), root)
    assert caught.value.code == "F19"
    Image.new("RGB", (8, 6)).save(root / "a.png")
    assert _looked_at(root) == ["a.png"]


def _damages(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    yield b""
    yield b"\0\xff"
    yield b"[" * 100_000
    yield b"[1, 2]"
    memory = json.loads(content)
    for change in (
        {"format_version": 2},
        {"image_root": "/elsewhere"},
        {"good": {"a.png": [1, 2]}},
        {"good": {"a.png": "yes"}},
        {"extra": 1},
    ):
        yield json.dumps({**memory, **change}).encode()


def test_a_damaged_or_foreign_memory_is_none(root: Path, cache: Path) -> None:
    _looked_at(root)
    file = next(cache.iterdir())
    content = file.read_bytes()
    damages = list(_damages(content))
    assert len(damages) == 10
    for damaged in damages:
        file.write_bytes(damaged)
        assert _looked_at(root) == ALL
        assert json.loads(file.read_bytes()) == json.loads(content)
    file.unlink()
    file.mkdir()
    assert _looked_at(root) == ALL


def test_a_memory_that_is_too_large_is_not_read(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _looked_at(root)
    monkeypatch.setattr(quick, "_MAX_BYTES", 10)
    assert _looked_at(root) == ALL


def test_without_a_place_for_the_memory_all_is_looked_at(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _looked_at(root) == _looked_at(root) == ALL


def test_the_home_folder_has_it_where_nothing_else_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the convention says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _looked_at(root)
    assert _looked_at(root) == []
    assert len(list((tmp_path / "home" / ".cache" / "dedetr" / "checked").iterdir())) == 1


def test_the_memory_is_bounded(root: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "MAX_IMAGES", 2)
    _looked_at(root)
    assert _looked_at(root) == ["a.png"]
    assert _looked_at(root) == ["b.jpg"]  # which went when a.png was remembered
    monkeypatch.setattr(quick, "MAX_FOLDERS", 3)
    for index in range(5):
        other = tmp_path / f"images-{index}"
        root.rename(other)
        assert _looked_at(other) == ALL
        other.rename(root)
    assert len(list(cache.iterdir())) == 3
