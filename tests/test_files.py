"""Files are written whole or not at all, and names from outside stay inside."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.errors import DataError, MachineError
from core.files import NamesWithin, join_within, safe_name, sha256_of, unique_names, write_atomic


def test_a_file_is_replaced_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    (tmp_path / "file.txt.d").mkdir()
    with pytest.raises(MachineError, match="cannot write"):
        write_atomic(tmp_path / "file.txt" / "below", "x")
    with pytest.raises(MachineError, match="cannot write"):
        write_atomic(tmp_path / "file.txt.d", "a folder stands here")
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file.txt", "file.txt.d"]


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("name", ["a.jpg", "deep/er/a.jpg", "with space.jpg", "ünïcode.png", "a..b.jpg"])
def test_names_below_the_root_are_joined(tmp_path: Path, name: str) -> None:
    assert join_within(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["", "../a", "a/../../b", "a/..", "/etc/passwd", "C:\\a", "C:a", "\\\\host\\a", "..\\a", "a\0b", "\\a"],
    ids=lambda name: f"F31-{name!r}",
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="escapes image root"):
        join_within(tmp_path, name)


def test_links_that_lead_out_or_in_circles_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    (root / "inside").symlink_to(root)
    with pytest.raises(DataError, match="escapes image root by a link"):
        join_within(root, "out/secret.jpg")
    with contextlib.suppress(DataError):  # some versions of Python take the circle for a missing file
        join_within(root, "circle/a.jpg")
    assert join_within(root, "inside/a.jpg") == root / "inside" / "a.jpg"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.sampled_from("abio./\\:\0\né"), max_size=8), max_size=6))
@example(names=["/a", "o/b", "o/b/c", "o", "i", "i/c", "a/o", "a/..", "..", ".", "", "a/", "./a", "..\\a", "c:a"])
def test_many_names_are_judged_as_one_is(tmp_path: Path, names: list[str]) -> None:
    root = tmp_path / "root"
    if not root.exists():
        (root / "a" / "b").mkdir(parents=True)
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "b").symlink_to(root / "a")
        (root / "o").symlink_to(tmp_path / "outside")
        (root / "i").symlink_to(root / "a")
        (root / "a" / "o").symlink_to(tmp_path / "outside")
    many = NamesWithin(root)
    for name in [*names, *names]:
        assert refusal(many.require, name) == refusal(lambda name: join_within(root, name), name)


def refusal(judge: Callable[[str], object], name: str) -> str | None:
    try:
        judge(name)
    except DataError as error:
        return error.message
    return None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("traffic light", "traffic light"), ("a/b\\c", "a_b_c"), ("..", "_"), ("", "_"), (".hidden.", "hidden"),
        ("what?\n\0", "what___"), ("con", "_con"), ("NUL.x", "_NUL.x"), ("größe", "größe"), ("\udcff", "_"),
    ],
)  # fmt: skip
def test_f31_any_text_becomes_one_name(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_a_long_text_becomes_a_name_that_fits() -> None:
    assert len(safe_name("ü" * 300).encode()) <= 100
    assert safe_name("ü" * 300).strip("ü") == ""


def test_equal_names_are_numbered_also_where_case_does_not_count() -> None:
    assert unique_names(["a", "a-2", "a", "A", "b"]) == ["a", "a-2", "a-3", "A-4", "b"]


def test_composed_and_decomposed_letters_are_one_name() -> None:
    assert unique_names(["é", "e\u0301"]) == ["é", "e\u0301-2"]


def test_many_equal_names_and_long_ones(tmp_path: Path) -> None:
    names = unique_names(["frame"] * 20_000)
    assert len(set(names)) == 20_000
    long = unique_names(["x" * 255, "x" * 255])
    assert len(set(long)) == 2
    for name in long:
        write_atomic(tmp_path / f"{name}-100.jpg", b"")
    write_atomic(tmp_path / ("y" * 255), b"")
