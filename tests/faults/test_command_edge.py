"""F75 to F81: what is typed wrong, Ctrl-C, pipes, terminals and `--json`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, dedetr
from tests.faults.shell import Here, on_terminal, posix, require_one_error, start

if sys.platform != "win32":
    import fcntl
    import pty
    import termios

# F75 to F77: the command line and files of settings (more in tests/cli/test_bad_input.py, tests/config/test_layers.py)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["trian", "train"]),
        (["visualise"], ["visualise", "visualize"]),
        (["prepare-data", "--fromat", "voc"], ["--fromat", "--format"]),
        (["prepare-data", "images", "--format", "cocoo"], ["--format", "'cocoo'", "'coco'"]),
        (["subsample", "--rat", "0.5"], ["--rat", "--rate"]),
        (["predict", "images", "--thresold", "0.5"], ["--thresold", "--threshold"]),
        (["predict", "images", "--set", "postproces.nms=true"], ["postproces", "did you mean 'postprocess'?"]),
        (["eval", "--set", "data.batchsize=3"], ["data.batchsize", "did you mean 'batch_size'?"]),
        (["visualize", "--mode", "atention"], ["--mode", "did you mean 'attention'?"]),
        (["train", "--backbone", "resnet5O"], ["resnet5O", "resnet50"]),
        (["doctor", "--jsn"], ["--jsn", "--json"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_f75_what_is_unknown_is_named_with_what_is_nearest(
    here: Here, trained: Path, arguments: list[str], words: list[str]
) -> None:
    code, printed, said = here(*arguments, cwd=trained)
    require_one_error(code, said, 2, *words)
    assert printed == ""


def test_f75_keys_of_files_and_variables_are_named_with_their_place(here: Here, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("run:\n  seed: 3\noptimizer:\n  learning_rat: 1\n")
    code, _, said = here("train", "--config", "my.yaml", cwd=tmp_path)
    require_one_error(code, said, 2, "my.yaml:4", "unknown key 'optimizer.learning_rat'", "hint: ")
    code, _, said = here("train", cwd=tmp_path, DEDETR_OPTIMIZER__LRR="1")
    require_one_error(code, said, 2, "DEDETR_OPTIMIZER__LRR", "did you mean 'lr'?")


def test_f76_all_wrong_values_at_once_each_with_its_place(here: Here, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text('schedule:\n  epochs: "ten"\ndata:\n  num_workers: -2\n')
    flags = ["--config", "my.yaml", "--lr", "-1", "--set", "postprocess.nms_iou=1.5"]
    code, _, said = here("train", *flags, cwd=tmp_path, DEDETR_RUN__SEED="no")
    places = ["my.yaml:2", "my.yaml:4", "--lr", "--set postprocess.nms_iou", "DEDETR_RUN__SEED"]
    require_one_error(code, said, 2, *(f"[{place}]" for place in places))
    assert "'ten'" in said


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("run: {seed: 1}\ndata:\n  short_side: 480\nrun: {seed: 2}\n", "my.yaml:4", "stands twice"),
        ("optimizer:\n  lr: 1\n  lr: 2\n", "my.yaml:3", "stands twice"),
        ("optimizer:\n\tlr: 1\n", "my.yaml:2", "spaces, not tabs"),
        ("", "my.yaml", "is empty"),
        ("# nothing but a remark\n", "my.yaml", "is empty"),
        ("- 1\n", "my.yaml:1", "sections"),
        ("run: !!python/object/apply:os.system ['touch canary']\n", "my.yaml", "YAML"),
    ],
    ids=["section-twice", "key-twice", "tab", "empty", "remark", "list", "F34-object"],
)
def test_f77_a_file_of_settings_that_cannot_be_read(
    here: Here, tmp_path: Path, text: str, place: str, reason: str
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    code, _, said = here("train", "--config", "my.yaml", cwd=tmp_path)
    require_one_error(code, said, 2, place, reason)
    assert not (tmp_path / "canary").exists()


# F78, F79: Ctrl-C, and readers that go away


@posix
@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (["prepare-data", "--out", "OUT"], None),
        (["subsample", "--rate", "0.5", "--out", "OUT.json"], None),
        (["doctor"], None),
        (["train", "--out", "OUT", *TINY], None),
        (["eval"], "evaluating"),
        (["predict", "data/images/train", "--out", "OUT"], "predicting"),
        (["predict", "-", "--out", "OUT"], None),
        (["visualize", "--mode", "all", "--out", "OUT"], None),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_f78_ctrl_c_is_one_line(trained: Path, tmp_path: Path, arguments: list[str], note: str | None) -> None:
    """It comes while modules are loaded, and where `note` says when in the middle of the work."""
    words = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    for wait_for in dict.fromkeys(["ready", note or "ready"]):
        process = start(*words, cwd=trained, stdin=subprocess.PIPE)
        assert process.stderr is not None
        said = ""
        while wait_for not in (line := process.stderr.readline()):
            assert line, said
            said += line
        time.sleep(0.1 if wait_for == "ready" else 0)
        os.killpg(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        require_one_error(process.returncode, said + rest, 130, "error: stopped by ")
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@posix
@pytest.mark.parametrize(
    ("arguments", "wait_for", "number"),
    [
        (["prepare-data", "--out", "OUT"], "ready", signal.SIGTERM),
        (["train", "--out", "OUT", *TINY], "ready", signal.SIGUSR1),
        (["train", "--out", "OUT", "--nproc", "2", *TINY], "ready", signal.SIGTERM),
        (["eval"], "evaluating", signal.SIGTERM),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_f41_a_scheduler_s_signal_is_one_line_too(
    trained: Path, tmp_path: Path, arguments: list[str], wait_for: str, number: signal.Signals
) -> None:
    """Before training begins, and in other commands, there is nothing to save."""
    words = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    process = start(*words, cwd=trained)
    assert process.stderr is not None
    said = ""
    while wait_for not in (line := process.stderr.readline()):
        assert line, said
        said += line
    time.sleep(0.1)
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    require_one_error(process.returncode, said + rest, 143, f"error: stopped by {number.name}")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@posix
def test_f41_a_terminal_that_is_closed_saves_the_run(trained: Path, tmp_path: Path) -> None:
    """SIGHUP; what is said from then on would be an error of writing to a terminal that is gone."""
    run = tmp_path / "run"
    own, terminal = pty.openpty()
    flags = ["--subset", "0.05", "--epochs", "500", "--workers", "1", "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dedetr_cli", "train", *TINY, *flags],
        cwd=trained,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    shown = b""
    while b"epoch" not in shown:
        shown += os.read(own, 4096)
    os.close(own)
    assert process.wait(timeout=120) == 129, shown
    assert (run / "checkpoints" / "last" / "model.pt").is_file()


@posix
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["", "json"])
def test_f78_ctrl_c_while_a_module_is_loaded_that_cannot_bear_it(tmp_path: Path, flags: list[str]) -> None:
    """C++ code that is being loaded may abort when it meets an exception; here Python code swallows it."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    list(range(10**6))\n"
        "except BaseException:\n    os._exit(134)\n"
    )
    done = dedetr("doctor", *flags, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    require_one_error(done.returncode, done.stderr, 130, "error: stopped by Ctrl-C")
    assert not flags or json.loads(done.stdout)["error"]["exit_code"] == 130


@posix
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["prepare-data", "--out", "OUT"],
        ["subsample", "--rate", "0.5", "--out", "OUT.json"],
        ["subsample", "--rate", "0.5", "--out", "OUT.json", "--json"],
        ["train", "--show-config"],
        ["doctor"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_f79_a_reader_that_has_gone_is_no_error(trained: Path, tmp_path: Path, arguments: list[str]) -> None:
    """As `dedetr ... | true`, and surely with nobody there."""
    words = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "dedetr_cli", *words],
        cwd=trained,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@posix
def test_f79_notes_that_nobody_reads_do_not_stop_the_work(demo: Path, tmp_path: Path) -> None:
    code = f"'{sys.executable}' -m dedetr_cli prepare-data --out '{tmp_path}/data' --json 2> >(exec 0<&-; exit)"
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["command"] == "prepare-data"


# F80: terminals


@posix
def test_f80_a_dumb_terminal_gets_plain_text(trained: Path) -> None:
    code, shown = on_terminal("eval", cwd=trained, TERM="dumb")
    assert code == 0, shown
    assert "\x1b" not in shown
    assert "AP50" in shown


COLOURS = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)(?:;\d+)*m")
TERMINAL = {"columns": 40, "TERM": "xterm-256color"}


@posix
def test_f80_no_color_takes_the_colours_away(tmp_path: Path) -> None:
    for variables, has_colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        code, shown = on_terminal("subsample", "--rate", "7", cwd=tmp_path, **TERMINAL, **variables)
        assert code == 2
        assert "error: " in re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert bool(COLOURS.search(shown)) == has_colours


@posix
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["subsample", "--rate", "0.5", "--out", "OUT.json"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_f80_tables_fit_into_40_columns(demo: Path, tmp_path: Path, arguments: list[str]) -> None:
    words = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    code, shown = on_terminal(*words, cwd=demo, **TERMINAL)
    assert code == 0, shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    lines = [line for line in re.split(r"[\r\n]+", plain) if line.startswith(("┃", "│", "┏", "└", "╭", "╰"))]
    assert lines
    assert max(map(len, lines)) <= 40


def test_f80_the_c_locale_with_spaces_and_letters_in_paths(tmp_path: Path) -> None:
    folder = tmp_path / "größe 数 [x]"
    folder.mkdir()
    environment = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
    for words in (
        ["prepare-data", "--out", "dätä set"],
        ["subsample", "--rate", "0.1", "--data", "dätä set"],
        ["train", "--data", "dätä set", "--dry-run", *TINY],
    ):
        done = dedetr(*words, cwd=folder, **environment)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    done = dedetr("predict", "photo ö.jpg", cwd=folder, **environment)
    require_one_error(done.returncode, done.stderr, 3, "photo ?.jpg")


# F81: --json (successes of all commands: `succeed`; errors: tests/cli/test_command_line.py)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--dry-run", *TINY], 0),
        (["train", "--show-config"], 0),
        (["visualize", "--mode", "curves", "--out", "OUT"], 0),
        (["predict", "images", "--no-pictures", "--out", "OUT"], 0),
        (["train", "--config", "nowhere.yaml"], 2),
        (["eval", "--data", "nowhere"], 3),
        (["eval", "--device", "cuda:99"], 5),
        (["visualize", "--mode", "all,none"], 2),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else str(value),
)
def test_f81_stdout_is_one_document_whatever_happens(
    here: Here, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    monkeypatch.setattr("dedetr_cli.output._state", {"json_printed": False})  # as in a process of its own
    words = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    ended, printed, said = here(*words, "--json", cwd=trained)
    assert ended == code, said
    document = json.loads(printed)
    assert (document["schema_version"], document["command"]) == (1, arguments[0])
    assert document.get("error", {}).get("exit_code", 0) == code
