"""Files from the network, checked by their SHA-256, and gone on with where an earlier attempt stopped.

No other module of this package opens a connection, and this one only does it when a user asked for a download.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from core.errors import DataError, MachineError, UsageError
from core.files import fsync_folder, machine_errors, sha256_of

if sys.platform != "win32":
    import fcntl

OnBytes = Callable[[int, int | None], None]
"""Is told how many bytes of a file are here, and how many it has, None where the server does not say."""

TIMEOUT_S = 30.0
"""Of a connection that gives no sign of life."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Between attempts that brought nothing new; after the last one it is given up."""

_PIECE_BYTES = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)
_UNSATISFIED_RANGE = re.compile(r"bytes \*/(\d{1,18})", re.ASCII)


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    num_bytes: int | None = None,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Fetch a file over http or https, whole or not at all.

    It grows beside its place, as `target` with ".part" behind its name, which a broken connection, Ctrl-C or a kill
    leaves for the next time: then only what is missing is asked for. Without a checksum, which alone would tell whether
    it still is the same file, an earlier part is not used.

    Args:
        url: where it is.
        target: the file to make. One that is there already is checked and left alone.
        sha256: what it must have, 64 hexadecimal digits.
        num_bytes: its length, if it is known.
        on_bytes: is told how far it has come.

    Returns:
        `target`.

    Raises:
        UsageError: the address is none of http or https.
        DataError: the server does not have the file, or its length or checksum is another.
        MachineError: the server cannot be reached or breaks off again and again, the disk is too small or cannot be
            written, or another process is fetching the same file.
    """
    _require_http(url)
    if target.exists():
        _check(target, sha256, num_bytes)
        return target
    part = target.with_name(f"{target.name}.part")
    with machine_errors(target, "write the download"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part):
        if sha256 is None:
            _cut(part)
        _Download(url, part, num_bytes, on_bytes).run()
        try:
            _check(part, sha256, num_bytes, came_from=url)
        except DataError:
            part.unlink()
            raise
        with machine_errors(target, "write the download"):
            part.replace(target)
            fsync_folder(target.parent)
    return target


class _BrokenError(Exception):
    """A connection that failed in a way that may be another one next time."""


class _Download:
    """One file on its way into its part."""

    def __init__(self, url: str, part: Path, num_bytes: int | None, on_bytes: OnBytes | None) -> None:
        self._url = url
        self._part = part
        self._num_bytes = num_bytes
        self._on_bytes = on_bytes or (lambda _done, _total: None)
        self._version: str | None = None

    def run(self) -> None:
        """Fetch what is missing, over as many connections as it takes while each brings something new."""
        farthest, pauses = self._size(), iter(PAUSES_S)
        while (fault := self._attempt()) is not None:
            if self._size() > farthest:
                farthest, pauses = self._size(), iter(PAUSES_S)
            pause = next(pauses, None)
            if pause is None:
                raise MachineError(
                    f"the download fails again and again: {fault}",
                    where=self._url,
                    hint="check the network, and run the command again: it goes on where it stopped",
                    code="F39",
                )
            time.sleep(pause)

    def _attempt(self) -> str | None:
        """Fetch what is missing over one connection; return why it broke, None when all is here."""
        try:
            self._go_on()
        except _BrokenError as error:
            return str(error)
        return None

    def _size(self) -> int:
        with machine_errors(self._part, "read the download"):
            return self._part.stat().st_size

    def _go_on(self) -> None:
        done = self._size()
        if self._num_bytes is not None and done > self._num_bytes:
            done = _cut(self._part)
        if done and done == self._num_bytes:
            return
        headers = {"User-Agent": "dedetr", "Accept-Encoding": "identity"}
        if done:
            headers["Range"] = f"bytes={done}-"
            if self._version is not None:
                headers["If-Range"] = self._version
        try:
            response = _opener().open(urllib.request.Request(self._url, headers=headers), timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, done)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(_reason(error)) from error
        except ValueError as error:  # an address that the server led to
            raise DataError(f"the server leads to no address: {error}", where=self._url, code="F39") from error
        else:
            with response:
                self._receive(response, done)

    def _refused(self, error: urllib.error.HTTPError, done: int) -> None:
        """Return if the part is all that the server has; raise what else its answer means."""
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and done:
            found = _UNSATISFIED_RANGE.fullmatch(error.headers.get("Content-Range", ""))
            if found is None or int(found[1]) == done:
                return
            _cut(self._part)
            raise _BrokenError(f"the server has {found[1]} bytes, and {done} were here")
        answer = f"{error.code} {error.reason}"
        if error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _BrokenError(f"the server answers {answer}")
        raise DataError(
            f"the server does not give the file: {answer}",
            where=self._url,
            hint="check the address, for example in a browser",
            code="F39",
        )

    def _receive(self, response: Any, done: int) -> None:
        """Write an answer to the part."""
        start, total = _extent(response)
        if start not in (0, done):
            _cut(self._part)
            raise _BrokenError("the server gave another range than asked for")
        total = self._num_bytes if total is None else total
        if self._num_bytes not in (None, total):
            raise DataError(
                f"the server's file has {total} bytes, expected are {self._num_bytes}",
                where=self._url,
                hint="it is another file, or another version of it: check the address",
                code="F39",
            )
        version = response.headers.get("ETag", "")
        self._version = version if version.startswith('"') else None  # a weak one vouches for no range
        done = start or _cut(self._part)
        if total is not None:
            require_free(self._part.parent, total - done, "the download")
        with machine_errors(self._part, "write the download"), self._part.open("ab") as stream:
            self._on_bytes(done, total)
            while (total is None or done <= total) and (piece := _read(response)):
                stream.write(piece)
                done += len(piece)
                self._on_bytes(done, total)
            stream.flush()
            os.fsync(stream.fileno())
        if total is not None and done < total:
            raise _BrokenError(f"the connection ended after {done} of {total} bytes")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone; the standard one goes to ftp, too."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request to follow."""
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(newurl, code, f"leads to {newurl}, which is not allowed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Make an opener that knows http and https, proxies of the environment, and nothing else: no files, no ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _HttpRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _extent(response: Any) -> tuple[int | None, int | None]:
    """Return the position in the file at which an answer begins, and the length of the file, where they are told."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0, response.length
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    start = int(found[1])
    if found[2] != "*":
        return start, int(found[2])
    return start, None if response.length is None else start + response.length


def _read(response: Any) -> bytes:
    try:
        piece: bytes = response.read(_PIECE_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_reason(error)) from error
    return piece


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason) or type(reason).__name__


def _require_http(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isascii() or not url.isprintable() or " " in url:
        hint = "give it in plain letters, without spaces"
        raise UsageError("not an address that begins with http:// or https://", where=url, hint=hint)


def _check(file: Path, sha256: str | None, num_bytes: int | None, came_from: str | None = None) -> None:
    """Refuse a file that is not the expected one; `came_from` for what was just fetched."""
    whence = f"what came from {came_from}" if came_from else "the file that is here"
    hint = "run the command again; if that does not help, the server has another file"
    if not came_from:
        hint = "move it away, so that it is fetched again"
    with machine_errors(file, "read the download"):
        size = file.stat().st_size if file.is_file() else None
        if num_bytes not in (None, size):
            raise DataError(
                f"{whence} has {size} bytes, expected are {num_bytes}", where=str(file), hint=hint, code="F39"
            )
        found = sha256_of(file) if sha256 is not None else None
    if sha256 is not None and found != sha256.lower():
        raise DataError(
            f"{whence} has the SHA-256 {found}, expected is {sha256}", where=str(file), hint=hint, code="F39"
        )


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Give the part to this process alone; one that stays empty is removed."""
    with machine_errors(part, "write the download"), part.open("ab") as stream:
        if sys.platform == "win32":
            stream.close()  # an open file could not be renamed
        else:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Else whoever held the lock has given the part its name in the meantime.
                is_ours = part.exists() and os.path.samestat(os.fstat(stream.fileno()), part.stat())
            except BlockingIOError:
                is_ours = False
            if not is_ours:
                raise MachineError(
                    "another process is fetching this file",
                    where=str(part),
                    hint="wait for it, and run the command again",
                )
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def _cut(part: Path) -> int:
    """Empty a part; return its length, 0."""
    with machine_errors(part, "write the download"):
        part.write_bytes(b"")
    return 0


def require_free(folder: Path, num_bytes: int, what: str) -> None:
    """Check that a disk has room for so many bytes, before hours are spent on them.

    Args:
        folder: on the disk; it need not exist yet.
        num_bytes: what is needed.
        what: it is needed for.

    Raises:
        MachineError: it has not; says how many bytes are free.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    with machine_errors(existing, "look at the disk"):
        free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise MachineError(
            f"not enough room for {what}: {num_bytes} bytes needed, {free} free",
            where=str(folder),
            hint="free some space on this disk, or name a folder on another one",
        )
