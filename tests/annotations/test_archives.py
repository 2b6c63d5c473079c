from __future__ import annotations

import copy
import resource
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.annotations.archives import content_folders, unpack_beside, unpack_zip
from core.annotations.faults import FaultLog
from core.errors import DataError, MachineError, UsageError

from .conftest import all_bytes

CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def with_entry(path: Path, edit: Callable[[zipfile.ZipInfo], object]) -> Path:
    """A harmless file, and one that was edited before it was added."""
    info = zipfile.ZipInfo("evil.txt")
    edit(info)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.txt", b"good")
        archive.writestr(info, b"../../etc")
    return path


def patch(path: Path, edit: Callable[[bytearray], object]) -> Path:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)
    return path


def test_content_arrives_as_it_was(tmp_path: Path) -> None:
    files = {"a b/ü 'x'.png": bytes(range(256)) * 9, "a b/deep/er.json": b"{}", "empty.txt": b""}
    archive = make_zip(tmp_path / "x.zip", files)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("a folder/", b"")
    assert unpack_zip(archive, tmp_path / "new" / "out") == 3
    assert all_bytes(tmp_path / "new") == {f"out/{name}": content for name, content in files.items()}


def test_only_what_is_wanted(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"a", "sub/b.png": b"b", "c.txt": b"c"})
    assert unpack_zip(archive, tmp_path / "out", wanted=lambda name: name.endswith(".png")) == 2
    assert sorted(all_bytes(tmp_path / "out")) == ["a.png", "sub/b.png"]
    with pytest.raises(DataError, match="none of the files looked for"):
        unpack_zip(archive, tmp_path / "none", wanted=lambda _: False)
    assert not (tmp_path / "none").exists()


def test_backslashes_of_windows_part_folders(tmp_path: Path) -> None:
    archive = with_entry(tmp_path / "x.zip", lambda info: setattr(info, "filename", "sub\\evil.txt"))
    unpack_zip(archive, tmp_path / "out")
    assert sorted(all_bytes(tmp_path / "out")) == ["good.txt", "sub/evil.txt"]


def test_permissions_are_those_of_new_files(tmp_path: Path) -> None:
    archive = with_entry(tmp_path / "x.zip", lambda info: setattr(info, "external_attr", 0o104777 << 16))
    unpack_zip(archive, tmp_path / "out")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out" / "evil.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def named(name: str) -> Callable[[Path], Path]:
    return lambda path: with_entry(path, lambda info: setattr(info, "filename", name))


def of_kind(kind: int) -> Callable[[Path], Path]:
    return lambda path: with_entry(path, lambda info: setattr(info, "external_attr", (kind | 0o777) << 16))


def nul_in_name(path: Path) -> Path:
    make_zip(path, {"good.txt": b"good", "evilX.txt": b"x"})
    return patch(path, lambda content: content.__setitem__(slice(None), content.replace(b"evilX.txt", b"evil\0.txt")))


def used_twice(path: Path) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.txt", b"1")
        archive.writestr("./a.txt", b"2")
    return path


def encrypted(path: Path) -> Path:
    def set_flags(content: bytearray) -> None:
        content[content.index(LOCAL) + 6] |= 1
        content[content.index(CENTRAL) + 8] |= 1

    return patch(make_zip(path, {"a.txt": b"secret"}), set_flags)


def changed_byte(path: Path) -> Path:
    make_zip(path, {"good.txt": b"good", "a.txt": b"some content"}, zipfile.ZIP_STORED)
    return patch(path, lambda content: content.__setitem__(content.index(b"some"), ord("S")))


def shorter_than_stated(path: Path) -> Path:
    make_zip(path, {"a.txt": b"content" * 9})
    return patch(path, lambda content: struct.pack_into("<L", content, content.index(CENTRAL) + 24, 1000))


def longer_than_stated(path: Path) -> Path:
    make_zip(path, {"a.txt": b"content" * 9})
    return patch(path, lambda content: struct.pack_into("<L", content, content.index(CENTRAL) + 24, 5))


def bomb(path: Path) -> Path:
    return make_zip(path, {"good.txt": b"good", "bomb": bytes(70 << 20)})


def overlapping(path: Path) -> Path:
    """Ten files of 8 MiB that are the same few bytes of the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0", bytes(8 << 20))
        for number in range(1, 10):
            again = copy.copy(archive.infolist()[0])
            again.filename = again.orig_filename = str(number)
            archive.filelist.append(again)
    return path


def writes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut_off(path: Path) -> Path:
    return patch(make_zip(path, {"a.txt": b"content" * 99}), lambda content: content.__delitem__(slice(-30, None)))


@pytest.mark.parametrize(
    ("make", "code", "reason"),
    [
        pytest.param(named("../evil.txt"), "F37", "leads out", id="parent"),
        pytest.param(named("a/../../evil.txt"), "F37", "leads out", id="parent-further-in"),
        pytest.param(named("..\\evil.txt"), "F37", "leads out", id="parent-of-windows"),
        pytest.param(named("/tmp/evil.txt"), "F37", "leads out", id="absolute"),
        pytest.param(named("C:\\evil.txt"), "F37", "leads out", id="drive"),
        pytest.param(named("C:evil.txt"), "F37", "leads out", id="drive-alone"),
        pytest.param(named("\\\\host\\evil.txt"), "F37", "leads out", id="share"),
        pytest.param(named("."), "F37", "leads out", id="dot"),
        pytest.param(nul_in_name, "F37", "leads out", id="nul"),
        pytest.param(named("good.txt/evil.txt"), "F37", "cannot be used", id="file-as-folder"),
        pytest.param(named("n" * 300), "F37", "cannot be used", id="long-name"),
        pytest.param(of_kind(stat.S_IFLNK), "F37", "link", id="link"),
        pytest.param(of_kind(stat.S_IFIFO), "F37", "device", id="pipe"),
        pytest.param(used_twice, "F37", "used twice", id="twice"),
        pytest.param(encrypted, "F37", "encrypted", id="encrypted"),
        pytest.param(
            lambda path: make_zip(path, {"a.txt": b"a"}, zipfile.ZIP_BZIP2), "F37", "not read", id="another-method"
        ),
        pytest.param(named("x/" * 101 + "evil.txt"), "F37", "more than 100 folders", id="many-folders"),
        pytest.param(named("x/" * 1100 + "evil.txt"), "F37", "more than 100 folders", id="a-thousand-folders"),
        pytest.param(changed_byte, "F37", "damaged", id="checksum"),
        pytest.param(shorter_than_stated, "F37", "cut off", id="shorter-than-stated"),
        pytest.param(longer_than_stated, "F37", "damaged", id="longer-than-stated"),
        pytest.param(cut_off, "F37", "damaged", id="cut-off"),
        pytest.param(writes(b""), "F37", "damaged", id="zero-bytes"),
        pytest.param(writes(b"\x1f\x8b no zip at all" * 9), "F37", "not a ZIP", id="no-zip"),
        pytest.param(lambda path: make_zip(path, {}), "F37", "no files", id="nothing-in-it"),
        pytest.param(lambda path: path.mkdir(), "F37", "cannot be read", id="folder"),
        pytest.param(lambda path: None, "F19", "no such archive", id="missing"),
        pytest.param(bomb, "F35", "'bomb' unpacks from", id="bomb"),
        pytest.param(overlapping, "F35", "it unpacks from", id="overlapping"),
    ],
)
def test_f37_refused_archives_leave_nothing(
    tmp_path: Path, make: Callable[[Path], object], code: str, reason: str
) -> None:
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    make(folder / "x.zip")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=reason) as raised:
        unpack_zip(folder / "x.zip", folder / "out")
    assert (raised.value.code, raised.value.where) == (code, str(folder / "x.zip"))
    assert sorted(tmp_path.rglob("*")) == before


def test_f35_more_than_asked_for(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a": b"12345", "b": b"12345"})
    with pytest.raises(DataError, match="to 10 bytes, more than 9") as raised:
        unpack_zip(archive, tmp_path / "out", max_bytes=9)
    assert raised.value.code == "F35"
    assert unpack_zip(archive, tmp_path / "out", max_bytes=5, wanted=lambda name: name == "a") == 1


def test_machine_errors_leave_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a": b"a", "b": bytes(range(256)) * 400})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    before = all_bytes(tmp_path)
    with pytest.raises(MachineError, match="exists"):
        unpack_zip(archive, tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # what a disk without room does, on any machine
    try:
        with pytest.raises(MachineError, match="too large"):
            unpack_zip(archive, tmp_path / "other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all_bytes(tmp_path) == before
    assert not (tmp_path / "other").exists()


def test_unpacked_beside_and_once(tmp_path: Path) -> None:
    archive = make_zip(
        tmp_path / "my set.v1.zip", {"photos/a.png": b"a", "__MACOSX/photos/._a.png": b"", "photos/.DS_Store": b""}
    )
    folder = unpack_beside(archive)
    assert folder == tmp_path / "my set.v1"
    assert [path.as_posix() for path in content_folders(folder)] == [str(folder), str(folder / "photos")]
    assert [path.name for path in folder.rglob("*.png")] == ["a.png"]
    (folder / "photos" / "a.png").write_bytes(b"still there")
    assert unpack_beside(archive) == folder
    assert (folder / "photos" / "a.png").read_bytes() == b"still there"
    make_zip(archive, {"photos/other.png": b"other"})
    with pytest.raises(UsageError, match="which exists"):
        unpack_beside(archive)
    assert unpack_beside(archive, tmp_path / "elsewhere") == tmp_path / "elsewhere" / "my set.v1"


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"a"})
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError) as raised:
        unpack_beside(archive)
    assert str(tmp_path / "x") in str(raised.value.hint)
    assert all_bytes(tmp_path / "x") == {}


def test_content_folders_stop_at_a_choice(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c.txt").touch()
    assert list(content_folders(tmp_path)) == [tmp_path, tmp_path / "a"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_are_unpacked_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    make_zip(root / "x.zip", {"a/b.txt": b"content" * 20, "c.txt": b""})

    def spoil(content: bytearray) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        del content[data.draw(st.integers(len(content) // 2, len(content))) :]

    patch(root / "x.zip", spoil)
    (root / "in").mkdir()
    log = FaultLog(drops=True)
    is_unpacked = log.attempt(unpack_zip, root / "x.zip", root / "in" / "out") is not None
    assert {fault.code for fault in log.faults} <= {"F35", "F37"}
    assert [path.name for path in (root / "in").iterdir()] == ["out"] * is_unpacked
    assert sorted(path.name for path in root.iterdir()) == ["in", "x.zip"]
