"""Commands as a shell starts them: in process groups, on small disks, on terminals."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

if sys.platform != "win32":
    import fcntl
    import pty
    import struct
    import termios

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
Here = Callable[..., "tuple[int, str, str]"]
"""A command in this process: exit code, stdout, stderr; see `conftest.here`."""


def require_one_error(code: int, said: str, expected: int, *words: str) -> None:
    """Check the exit code, that there is one error line and no traceback, and that it has the words."""
    assert code == expected, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    for word in words:
        assert word in said, said


_DEDETR = "import sys; sys.stderr.write('ready\\n'); sys.stderr.flush(); from dedetr_cli.__main__ import main; main()"


def start(
    *arguments: str | Path, cwd: Path, prefix: Sequence[str] = (), program: str = _DEDETR, **options: object
) -> subprocess.Popen[str]:
    """Start the real command in a process group of its own, as a shell does.

    Args:
        arguments: of the command.
        cwd: where it is typed.
        prefix: words before the whole.
        program: Python code that runs it.
        options: of `subprocess.Popen`.
    """
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


def in_small_disk(place: Path, num_bytes: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a small disk mounted at `place`, which nobody else sees; skip where that is forbidden."""
    place.mkdir()
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = f"mount -t tmpfs -o size={num_bytes} tmpfs '{place}'"
    if shutil.which("unshare") is None or subprocess.run([*namespace, "sh", "-c", mount], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    return subprocess.run(
        [*namespace, "bash", "-c", f"set -e\n{mount}\n{script}"],
        cwd=place.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PLACE": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """Give a terminal, and what has been shown on it, to be asked for when its programs are over."""
    own, programs = pty.openpty()
    fcntl.ioctl(programs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(own, 4096):
                shown.append(piece)

    thread = threading.Thread(target=read)
    thread.start()

    def end() -> str:
        os.close(programs)
        thread.join(timeout=10)
        return b"".join(shown).decode()

    yield programs, end
    os.close(own)


def on_terminal(*arguments: str | Path, cwd: Path, columns: int = 80, **environment: str) -> tuple[int, str]:
    """Run the command on a terminal; return its exit code and what was shown."""
    cleared = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"}
    inherited = {name: value for name, value in os.environ.items() if name not in cleared}
    with terminal(columns) as (screen, end):
        code = subprocess.run(
            [sys.executable, "-m", "dedetr_cli", *map(str, arguments)],
            cwd=cwd,
            env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=screen,
            stdout=screen,
            stderr=screen,
            timeout=120,
            check=False,
        ).returncode
        return code, end()
