"""Downloads from a server on this machine that answers as servers do, good and bad."""

from __future__ import annotations

import functools
import hashlib
import io
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.annotations import download
from core.annotations.coco_download import COCO_2017, COCO_URL_VARIABLE, Archive, fetch_coco
from core.annotations.download import fetch
from core.annotations.prepared import open_dataset, read_split
from core.errors import DataError, MachineError, UsageError

from .conftest import all_bytes, make_coco_layout

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Request(BaseHTTPRequestHandler):
    """Answers as the server's script says, and without one as a good server would."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        answer = self.server.script.pop(0) if self.server.script else give
        answer(self, self.server.files.get(self.path))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Serves bytes by path.

    Attributes:
        files: what it has.
        script: answers to the next requests, in order.
        asked: path and Range of every request.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.files = files
        self.script: list[Callable[[Request, bytes | None], None]] = []
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Say nothing of readers that went away."""


def send(request: Request, status: int, body: bytes = b"", **headers: object) -> None:
    request.send_response(status)
    for name, value in ({"Content_Length": len(body)} | headers).items():
        if value is not None:
            request.send_header(name.replace("_", "-"), str(value))
    request.end_headers()
    request.wfile.write(body)


def give(request: Request, content: bytes | None, cut: int | None = None, etag: str | None = None) -> None:
    """Give a file or the rest of it that is asked for; `cut`: at most so many bytes before the connection ends."""
    if content is None:
        return send(request, 404)
    asked, known = request.headers.get("Range"), request.headers.get("If-Range")
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and known in (None, etag) else 0
    if start >= len(content):
        return send(request, 416, Content_Range=f"bytes */{len(content)}")
    rest = content[start:]
    part = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
    return send(request, 206 if start else 200, rest[:cut], Content_Length=len(rest), ETag=etag, **part)


def give_whole(request: Request, content: bytes | None, cut: int | None = None) -> None:
    """Give all of a file, whatever part was asked for."""
    assert content is not None
    send(request, 200, content[:cut], Content_Length=len(content))


def status(code: int, **headers: object) -> Callable[[Request, bytes | None], None]:
    return lambda request, _content: send(request, code, **headers)


def cut(num_bytes: int, **options: Any) -> Callable[[Request, bytes | None], None]:
    return functools.partial(give, cut=num_bytes, **options)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES_S", (0.01,) * 3)
    with Server({"/a.zip": CONTENT}) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def get(server: Server, target: Path, path: str = "/a.zip", **options: Any) -> Path:
    return fetch(server.address + path, target, **{"sha256": SHA256, "num_bytes": len(CONTENT)} | options)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "a.zip"


def leave_part(target: Path, content: bytes = CONTENT[:1000]) -> Path:
    target.parent.mkdir(exist_ok=True)
    part = target.with_name("a.zip.part")
    part.write_bytes(content)
    return part


def test_a_file_is_fetched_whole(server: Server, target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    assert get(server, target, on_bytes=lambda done, total: told.append((done, total))) == target
    assert all_bytes(target.parent) == {"a.zip": CONTENT}
    assert (told[0], told[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert server.asked == [("/a.zip", None)]
    get(server, target)
    assert len(server.asked) == 1


def test_neither_length_nor_checksum_need_be_known(server: Server, target: Path) -> None:
    server.script = [lambda request, content: send(request, 200, content or b"", Content_Length=None)]
    told: list[int | None] = []
    get(server, target, sha256=None, num_bytes=None, on_bytes=lambda _done, total: told.append(total))
    assert target.read_bytes() == CONTENT
    assert set(told) == {None}


@pytest.mark.parametrize("num_bytes", [len(CONTENT), None])
def test_what_is_missing_is_asked_for(server: Server, target: Path, num_bytes: int | None) -> None:
    leave_part(target)
    get(server, target, num_bytes=num_bytes)
    assert all_bytes(target.parent) == {"a.zip": CONTENT}
    assert server.asked == [("/a.zip", "bytes=1000-")]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(give_whole, id="range-ignored"),
        pytest.param(lambda request, content: send(request, 206, content), id="no-content-range"),
        pytest.param(
            lambda request, content: send(request, 206, content[7:], Content_Range=f"bytes 7-9/{len(content)}"),
            id="another-range",
        ),
        pytest.param(status(416, Content_Range="bytes */10"), id="416-of-a-shorter-file"),
    ],
)
def test_servers_that_give_no_rest_start_again(server: Server, target: Path, answer: Any) -> None:
    leave_part(target, b"x" * 1000)
    server.script = [answer]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] in (["bytes=1000-"], ["bytes=1000-", None])


def test_a_connection_that_ends_early_is_made_again(server: Server, target: Path) -> None:
    server.script = [cut(10_000)] * 9  # more often than it is tried without anything new
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, *(f"bytes={10_000 * n}-" for n in range(1, 10))]


def test_a_connection_that_falls_silent_is_made_again(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1)

    over = threading.Event()

    def fall_silent(request: Request, content: bytes | None) -> None:
        give(request, content, cut=1 << 16)
        over.wait(60)

    server.script = [fall_silent]
    started = time.monotonic()
    get(server, target)
    over.set()
    assert time.monotonic() - started < 30
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_file_that_changes_in_between_is_begun_again(server: Server, target: Path) -> None:
    server.files["/a.zip"] = b"y" * len(CONTENT)

    def give_new(request: Request, _content: bytes | None) -> None:
        give(request, CONTENT, etag='"new"')

    server.script = [cut(10_000, etag='"old"'), give_new]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/a.zip", None), ("/a.zip", "bytes=10000-")]


def test_what_breaks_again_and_again_is_given_up_and_kept(server: Server, target: Path) -> None:
    server.script = [functools.partial(give_whole, cut=500)] * 9
    with pytest.raises(MachineError, match=r"again and again.*ended after 500 of 256000 bytes") as raised:
        get(server, target)
    assert raised.value.code == "F39"
    assert len(server.asked) == 4
    assert all_bytes(target.parent) == {"a.zip.part": CONTENT[:500]}
    server.script.clear()
    get(server, target)
    assert server.asked[-1] == ("/a.zip", "bytes=500-")


def test_f39_another_checksum(server: Server, target: Path) -> None:
    leave_part(target, b"x" * 1000)
    with pytest.raises(DataError) as raised:
        get(server, target)
    found = hashlib.sha256(b"x" * 1000 + CONTENT[1000:]).hexdigest()
    assert found in raised.value.message
    assert SHA256 in raised.value.message
    assert raised.value.code == "F39"
    assert all_bytes(target.parent) == {}
    get(server, target)
    assert target.read_bytes() == CONTENT


def test_f39_another_length(server: Server, target: Path) -> None:
    told: list[int] = []
    with pytest.raises(DataError, match="has 256000 bytes, expected are 255999") as raised:
        get(server, target, num_bytes=len(CONTENT) - 1, on_bytes=lambda done, _total: told.append(done))
    assert raised.value.code == "F39"
    assert told == []
    server.script = [lambda request, content: send(request, 200, content or b"", Content_Length=None)]
    with pytest.raises(DataError, match="bytes, expected are 1000"):
        get(server, target, num_bytes=1000, on_bytes=lambda done, _total: told.append(done))
    assert max(told) < len(CONTENT)  # a stream without an end does not fill the disk
    assert all_bytes(target.parent) == {}


def test_f39_no_such_file(server: Server, target: Path) -> None:
    with pytest.raises(DataError, match="404") as raised:
        get(server, target, "/b.zip")
    assert raised.value.where == f"{server.address}/b.zip"
    assert raised.value.code == "F39"
    assert len(server.asked) == 1
    assert all_bytes(target.parent) == {}


def test_a_server_in_trouble_is_asked_again(server: Server, target: Path) -> None:
    server.script = [status(500), status(503)]
    get(server, target)
    assert target.read_bytes() == CONTENT
    server.script = [status(502)] * 9
    with pytest.raises(MachineError, match="again and again: the server answers 502"):
        get(server, target.with_name("b.zip"))
    assert len(server.asked) == 3 + 4
    assert all_bytes(target.parent) == {"a.zip": CONTENT}


def test_no_server(server: Server, target: Path) -> None:
    server.server_close()
    with pytest.raises(MachineError, match="again and again"):
        get(server, target)
    assert all_bytes(target.parent) == {}


def test_redirects_are_followed_to_http_alone(server: Server, target: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    leave_part(target)
    server.script = [status(302, Location="/a.zip")]
    assert get(server, target, "/moved").read_bytes() == CONTENT
    assert server.asked == [("/moved", "bytes=1000-"), ("/a.zip", "bytes=1000-")]
    for address in (secret.as_uri(), "ftp://127.0.0.1/a", "data:,x", "http://[", "/moved"):
        server.script = [status(302, Location=address)] * 20
        with pytest.raises(DataError) as raised:
            get(server, target.with_name("b.zip"), "/moved")
        assert raised.value.code == "F39"
    assert all_bytes(target.parent) == {"a.zip": CONTENT}


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "ftp://host/a", "a.zip", "", "http://", "http://host:x/a", "http://h/ä", "http://h/a b"],
)
def test_addresses_that_are_none(target: Path, address: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        fetch(address, target)


def test_a_file_larger_than_the_disk(server: Server, target: Path) -> None:
    server.script = [lambda request, content: send(request, 200, content or b"", Content_Length=10**18)]
    with pytest.raises(MachineError, match=f"{10**18} bytes needed, [0-9]+ free"):
        get(server, target, num_bytes=None)
    assert all_bytes(target.parent) == {}


def test_a_whole_part_is_recognised(server: Server, target: Path) -> None:
    leave_part(target, CONTENT)
    get(server, target)
    assert server.asked == []
    target.unlink()
    leave_part(target, CONTENT)
    get(server, target, num_bytes=None)
    assert server.asked == [("/a.zip", f"bytes={len(CONTENT)}-")]
    assert all_bytes(target.parent) == {"a.zip": CONTENT}


def test_parts_that_cannot_be_of_the_file_are_not_used(server: Server, target: Path) -> None:
    leave_part(target, b"x" * (len(CONTENT) + 1))
    get(server, target)
    target.unlink()
    leave_part(target)
    get(server, target, sha256=None)  # without it nobody could tell
    assert server.asked == [("/a.zip", None)] * 2
    assert target.read_bytes() == CONTENT


def test_another_file_in_its_place_is_left_alone(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match=f"expected is {SHA256}") as raised:
        get(server, target)
    assert "move it away" in str(raised.value.hint)
    assert all_bytes(target.parent) == {"a.zip": CONTENT[::-1]}
    assert server.asked == []


def test_ctrl_c_leaves_the_part(server: Server, target: Path) -> None:
    def stop(done: int, _total: int | None) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, target, on_bytes=stop)
    part = target.with_name("a.zip.part").read_bytes()
    assert CONTENT.startswith(part)
    assert len(part) > 100_000
    get(server, target)
    assert server.asked[-1] == ("/a.zip", f"bytes={len(part)}-")
    assert all_bytes(target.parent) == {"a.zip": CONTENT}


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_do_not_write_the_same_part(server: Server, target: Path) -> None:
    import fcntl

    part = leave_part(target)
    with part.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match="another process is fetching"):
            get(server, target)
    assert server.asked == []
    assert part.read_bytes() == CONTENT[:1000]
    get(server, target)


def test_f71_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MachineError, match="cannot write the download"):
        get(server, tmp_path / "file" / "a.zip")
    assert all_bytes(tmp_path) == {"file": b"mine"}


def zipped(folder: Path, *names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            for path in [folder / name] if (folder / name).is_file() else sorted((folder / name).rglob("*")):
                archive.write(path, path.relative_to(folder).as_posix())
    return stream.getvalue()


@pytest.fixture
def coco(server: Server, tmp_path: Path) -> dict[str, Archive]:
    """A small COCO on the server."""
    made = make_coco_layout(tmp_path / "made")
    (made / "annotations" / "captions_val2017.json").write_text("{}")
    archives: dict[str, Archive] = {}
    for name, real in COCO_2017.items():
        content = zipped(made, *({Path(part).parts[0] for part in real.holds}))
        server.files[f"/{real.path}"] = content
        archives[name] = Archive(
            real.path, len(content), hashlib.sha256(content).hexdigest(), real.holds, 2 * len(content)
        )
    return archives


def test_coco_is_fetched_and_can_be_read(
    server: Server, coco: dict[str, Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COCO_URL_VARIABLE, f"{server.address}/")
    root = tmp_path / "coco"
    notes: list[str] = []
    fetch_coco(root, archives=coco, on_note=notes.append)
    expected = all_bytes(tmp_path / "made")
    del expected["annotations/captions_val2017.json"]
    assert all_bytes(root) == expected
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "train2017", "val2017"]
    assert f"fetching {server.address}/zips/val2017.zip (0 MiB)" in notes
    dataset = open_dataset(root)
    assert [len(read_split(dataset, split)[0].images) for split in ("train", "val")] == [5, 3]
    server.asked.clear()
    fetch_coco(root, archives=coco, on_note=notes.append)
    assert server.asked == []
    assert notes[-1] == f"{root} has train2017 already: not fetched"


def test_only_what_is_missing_of_coco_is_fetched(server: Server, coco: dict[str, Archive], tmp_path: Path) -> None:
    root = tmp_path / "coco"
    fetch_coco(root, server.address, ("val",), archives=coco, keep_archives=True)
    assert (root / "val2017.zip").is_file()
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text("mine")
    (root / "train2017").mkdir()  # empty: as good as none
    (root / "train2017.zip").write_bytes(server.files["/zips/train2017.zip"])
    server.asked.clear()
    fetch_coco(root, server.address, archives=coco)
    assert [path for path, _ in server.asked] == ["/annotations/annotations_trainval2017.zip"]
    assert (root / "annotations" / "instances_val2017.json").read_text() == "mine"
    assert (root / "train2017" / "001.png").is_file()
    # Archives that a user brought or asked for stay.
    assert sorted(path.name for path in root.iterdir()) == [
        "annotations", "train2017", "train2017.zip", "val2017", "val2017.zip",
    ]  # fmt: skip


def test_f37_an_archive_of_something_else(server: Server, coco: dict[str, Archive], tmp_path: Path) -> None:
    holds = ("annotations/instances_val2017.json", "val2017")
    coco["val"] = Archive(**{**vars(coco["annotations"]), "holds": holds})
    with pytest.raises(DataError, match="does not hold val2017"):
        fetch_coco(tmp_path / "coco", server.address, ("val",), archives=coco)
    assert list(all_bytes(tmp_path / "coco")) == ["annotations_trainval2017.zip"]


def test_f39_a_mirror_of_something_else(server: Server, coco: dict[str, Archive], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected are 252907541") as raised:
        fetch_coco(tmp_path / "coco", server.address)
    assert raised.value.code == "F39"
    assert all_bytes(tmp_path / "coco") == {}


def test_room_for_what_is_unpacked_is_looked_for_first(
    server: Server, coco: dict[str, Archive], tmp_path: Path
) -> None:
    coco["train"] = Archive(**{**vars(coco["train"]), "num_bytes_unpacked": 10**18})
    with pytest.raises(MachineError, match=r"not enough room for train2017\.zip and what is unpacked of it"):
        fetch_coco(tmp_path / "coco", server.address, ("train",), archives=coco)
    assert server.asked == []
    with pytest.raises(UsageError, match="'test'"):
        fetch_coco(tmp_path / "coco", server.address, ("test",), archives=coco)
