"""`dedetr doctor` as it is typed: its lines, its JSON, its exit codes, on a sound and on a broken installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import dedetr

NO_NETWORK = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"network: {event} {arguments}".encode())
        os._exit(77)
sys.addaudithook(refuse)
"""


def test_f39_a_sound_machine_is_told_line_by_line_without_the_network(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    done = dedetr("doctor", "--data", "data", cwd=demo, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("      hint: ")]
    assert {line.split(" ")[0] for line in lines} <= {"ok", "warn"}
    for name in ("dedetr ", "Python ", "torch ", "torchvision operators on cpu ", "runs ", "data, train "):
        assert [line for line in lines if line[6:].startswith(name)], name
    assert done.stderr.startswith("nothing failed, warnings: ")
    assert "\x1b" not in done.stdout + done.stderr


def test_f81_the_same_as_one_json_document(demo: Path) -> None:
    done = dedetr("doctor", "--json", "--data", "data", cwd=demo)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document.keys() == {"schema_version", "command", "checks"}
    assert document["command"] == "doctor"
    for check in document["checks"]:
        assert check.keys() == {"name", "status", "value", "hint"}
        assert check["status"] in ("ok", "warn")
        assert check["status"] == "ok" or check["hint"]


def test_a_data_set_that_cannot_be_opened_ends_with_3(tmp_path: Path) -> None:
    done = dedetr("doctor", "--data", "nowhere", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stdout
    document = json.loads(done.stdout)
    assert [check["name"] for check in document["checks"] if check["status"] == "fail"] == ["data"]
    assert document["error"]["exit_code"] == 3
    assert done.stderr.splitlines()[0].startswith("error: 1 of ")


@pytest.mark.parametrize(
    ("package", "code"),
    [
        pytest.param("torch", "raise OSError('libtorch_cpu.so: cannot open shared object file')", id="torch"),
        pytest.param(
            "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')", id="F74-torchvision"
        ),
    ],
)
def test_a_broken_package_fails_and_the_rest_is_told(tmp_path: Path, package: str, code: str) -> None:
    (tmp_path / f"{package}.py").write_text(code)
    done = dedetr("doctor", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 5, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert len(failed) == 1
    assert failed[0].split()[1] == package
    assert code.split("'")[1] in failed[0]
    assert [line for line in done.stdout.splitlines() if "other packages" in line]
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
