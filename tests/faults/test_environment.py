"""F70 to F74 and F82: faults of disks, folders, devices, packages and clocks (F75 to F81: test_command_edge.py).

What the ids stand for is told by the names of the tests. Some of these faults are tested beside what they are about,
too: `pytest -k "f70 or f71 or ..."` finds all of them.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torchvision

from core.trainer.checkpoint import find_damage
from core.trainer.run_folder import RunFolder
from tests.cli.conftest import TINY, dedetr, succeed
from tests.faults.shell import Here, in_small_disk, posix, require_one_error, start

if sys.platform != "win32":
    import resource


# F70, F71: disks and folders


def hashes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def limit_files(num_bytes: int) -> Callable[[], None]:
    """Return what limits the size of files in a process: writing in the middle of one fails, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def longer_run(run: Path) -> list[str]:
    return ["train", "--resume", "--override", "--epochs", "2", "--device", "cpu", "--out", str(run)]


@posix
def test_f70_a_full_disk_leaves_the_earlier_checkpoint(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "tiny", run, symlinks=True)
    before = hashes(run / "checkpoints")
    largest = max(map(len, before.values()))
    process = start(*longer_run(run), cwd=tmp_path, preexec_fn=limit_files(largest // 2))
    _, said = process.communicate(timeout=120)
    require_one_error(process.returncode, said, 5, "bytes needed", "free", "hint: ", "--resume")
    assert hashes(run / "checkpoints") == before


@posix
def test_f70_a_disk_that_is_really_full(trained: Path, tmp_path: Path) -> None:
    run = trained / "runs" / "tiny"
    sizes = [path.stat().st_size for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    script = f"""
        cp -a '{run}' "$PLACE/run"
        code=0
        "$PYTHON" -m dedetr_cli {" ".join(longer_run(Path("$PLACE/run")))} || code=$?
        "$PYTHON" -c "import sys; from pathlib import Path; from core.trainer.checkpoint import find_damage
        for folder in sorted(Path(sys.argv[1]).glob('step-*')): print(folder.name, find_damage(folder))
        " "$PLACE/run/checkpoints"
        exit $code
    """
    script = script.replace("\n        ", "\n")
    done = in_small_disk(tmp_path / "disk", sum(sizes) + max(sizes) // 2, script)
    require_one_error(done.returncode, done.stderr, 5, "No space left", "bytes needed", "hint: free some space")
    (kept,) = (path.resolve().name for path in (run / "checkpoints").glob("last"))
    assert done.stdout.splitlines() == [f"{kept} None"]
    assert find_damage(run / "checkpoints" / kept) is None


@posix
@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare-data", "--out", "OUT/data"],
        ["subsample", "--rate", "0.5", "--out", "OUT/half.json"],
        ["predict", "images", "--out", "OUT/seen"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_f70_a_full_disk_in_other_commands(trained: Path, tmp_path: Path, arguments: list[str]) -> None:
    words = [word.replace("OUT", str(tmp_path)) for word in arguments]
    process = start(*words, cwd=trained, preexec_fn=limit_files(100))
    _, said = process.communicate(timeout=120)
    require_one_error(process.returncode, said, 5, os.strerror(errno.EFBIG), "hint: free some space")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare-data", "--out", "FILE"],
        ["subsample", "--rate", "0.5", "--out", "FILE/half.json"],
        ["train", "--out", "FILE/run", *TINY],
        ["predict", "images", "--out", "FILE"],
        ["visualize", "--num-images", "1", "--out", "FILE/plots"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_f71_a_file_in_the_place_of_the_folder(here: Here, trained: Path, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    words = [word.replace("FILE", str(tmp_path / "mine.txt")) for word in arguments]
    code, printed, said = here(*words, cwd=trained)
    require_one_error(code, said, 5, "mine.txt")
    assert printed == ""
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@posix
def test_f71_a_read_only_disk_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    script = """
        mount -o remount,ro "$PLACE"
        cd "$PLACE"
        for words in "train --preset none --out $PLACE/run" "prepare-data --out $PLACE/data"; do
            code=0
            "$PYTHON" -m dedetr_cli $words || code=$?
            echo $code
        done
    """
    done = in_small_disk(tmp_path / "disk", 1 << 20, script)
    assert done.stdout.split() == ["5", "5"], done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all(str(tmp_path / "disk") in line for line in errors)
    assert "Traceback" not in done.stderr


# F72 to F74: devices and operators (F73: tests/cli/test_roi_backend.py)


@pytest.mark.parametrize(
    "arguments", [["train", *TINY], ["eval"], ["predict", "images"], ["visualize"]], ids=lambda arguments: arguments[0]
)
def test_f72_a_cuda_device_that_is_not_there(here: Here, trained: Path, tmp_path: Path, arguments: list[str]) -> None:
    out = [] if arguments[0] == "eval" else ["--out", str(tmp_path / "out")]
    code, printed, said = here(*arguments, *out, "--device", "cuda:99", cwd=trained)
    require_one_error(code, said, 5, "CUDA", "hint: --device c")
    assert printed == ""
    assert not (tmp_path / "out").exists()


@pytest.fixture
def without_operators(tmp_path: Path) -> str:
    """A folder with the installed torchvision, but for its compiled operators."""
    source = Path(torchvision.__file__).parent
    shutil.copytree(source, tmp_path / "torchvision", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    return str(tmp_path)


@pytest.mark.parametrize("arguments", [["doctor"], ["eval"]], ids=lambda arguments: arguments[0])
def test_f74_torchvision_without_its_operators(trained: Path, without_operators: str, arguments: list[str]) -> None:
    done = dedetr(*arguments, cwd=trained, PYTHONPATH=without_operators)
    require_one_error(done.returncode, done.stderr, 5, "torchvision", "hint: ")
    if arguments == ["doctor"]:
        assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("fail")] == ["torchvision"]
    else:
        assert "dedetr doctor" in done.stderr or "pytorch.org" in done.stderr


def test_f74_torch_that_cannot_be_loaded(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')")
    done = dedetr("eval", "--json", cwd=trained, PYTHONPATH=str(tmp_path))
    require_one_error(done.returncode, done.stderr, 5, "libtorch_cpu.so", "`dedetr doctor`")
    assert json.loads(done.stdout)["error"]["exit_code"] == 5


def test_f74_a_package_that_is_not_there(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise ModuleNotFoundError(\"No module named 'msgspec'\", name='msgspec')")
    done = dedetr("subsample", "--rate", "0.5", "--json", cwd=trained, PYTHONPATH=str(tmp_path))
    require_one_error(done.returncode, done.stderr, 5, "No module named 'msgspec'", "pip check")
    assert json.loads(done.stdout)["error"]["exit_code"] == 5


# F82: several at once, and clocks


def test_f82_the_same_subset_made_by_several_at_once(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo / "data", tmp_path / "data", ignore=shutil.ignore_patterns("train-*"))
    words = ["subsample", "--rate", "0.3", "--seed", "7"]
    alone = tmp_path / "alone.json"
    succeed(*words, "--out", alone, cwd=tmp_path)
    processes = [start(*words, cwd=tmp_path) for _ in range(4)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    made = tmp_path / "data" / "annotations" / "train-30pct-seed7.json"
    assert filecmp.cmp(made, alone, shallow=False)
    assert filecmp.cmp(
        made.with_name("train-30pct-seed7.manifest.json"), tmp_path / "alone.manifest.json", shallow=False
    )
    assert not list(made.parent.glob(".*"))


def test_f82_runs_are_told_apart_when_the_clock_is_set_back(tmp_path: Path) -> None:
    """Folders of all the seconds to come are there already, as after a clock that was set back."""
    runs = tmp_path / "runs"
    for second in range(300):
        (runs / f"detr-{datetime.now() + timedelta(seconds=second):%Y%m%d-%H%M%S}").mkdir(parents=True)
    before = set(runs.iterdir())
    made: list[Path] = []

    def make() -> None:
        with RunFolder.create(None, "detr", runs_root=runs) as run:
            made.append(run.path)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8
    assert not before & set(made)
    assert all(re.fullmatch(r"detr-\d{8}-\d{6}-\d+", path.name) for path in made)
