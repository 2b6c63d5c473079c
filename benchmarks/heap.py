"""`python benchmarks/heap.py FILE train ...` runs a `dedetr` command, and keeps writing to a file how its heap is used.

Where the C library is glibc: how much of the memory that `malloc` has taken from the system is handed out to somebody
(a leak would grow), and how much lies free between that (fragments). Elsewhere no file is written.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

SECONDS_BETWEEN = 0.5


def main() -> None:
    file = Path(sys.argv[1])
    sys.argv = ["dedetr", *sys.argv[2:]]
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_info"):
        threading.Thread(target=watch, args=(library, file), daemon=True).start()
    from dedetr_cli.__main__ import main as run

    run()


def watch(library: ctypes.CDLL, file: Path) -> None:
    while True:
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(heap(library, unfinished)))
        unfinished.replace(file)
        time.sleep(SECONDS_BETWEEN)


def heap(library: ctypes.CDLL, file: Path) -> dict[str, float]:
    """Return KiB of the heap that are in use and that are free, by glibc's own account of all its arenas."""
    library.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(library.fopen(os.fsencode(file), b"w"))
    library.malloc_info(0, stream)
    library.fclose(stream)
    total = file.read_text().rpartition("</heap>")[2]
    sizes = {kind: int(size) for kind, size in re.findall(r'type="(\w+)"(?: count="\d+")? size="(\d+)"', total)}
    free = sizes["fast"] + sizes["rest"]
    return {"in use": (sizes["current"] - free + sizes["mmap"]) / 1024, "free": free / 1024}


if __name__ == "__main__":
    main()
