"""Every command line of README and docs/, as it stands there, in a folder that looks like its reader's.

`train` runs with --dry-run behind it, all others for real.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.main import get_command

from dedetr_cli.app import app, main
from tests.annotations.conftest import coco_dict, make_cityscapes_layout, make_coco_layout, make_voc, write_json
from tests.cli.conftest import TINY
from tests.golden_files import Golden
from tests.models.test_weights import synthetic_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined]

SHELL_FENCES = {"", "bash", "sh", "shell", "console"}
# Programs that are not ours; their lines set the scene.
OTHERS = {"make", "pip", ".", "python", "cd", "git"}
TORCHRUN = re.compile(r"torchrun (--\S+ \S+ )*-m dedetr_cli (\S+)")


def code_lines(text: str) -> list[str]:
    """Return the lines of all code blocks that a shell would read; a trailing backslash joins two."""
    lines: list[str] = []
    fence: str | None = None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fence = line.strip("` ") if fence is None else None
        elif (fence is None and line.startswith("    ")) or fence in SHELL_FENCES:
            stripped = line.strip()
            if lines and lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1] + stripped
            elif stripped and not stripped.startswith("#"):
                lines.append(stripped)
    return lines


def commands_of(line: str) -> list[str]:
    """Return the commands of one line, without comments."""
    return [command.strip() for command in re.split(r" && ", re.sub(r"\s+#.*$", "", line))]


def is_ours(command: str) -> bool:
    return command.split()[0] in {"dedetr", "torchrun"} or "| dedetr " in command


DOCUMENTED = list(
    dict.fromkeys(
        command
        for document in DOCUMENTS
        for line in code_lines(document.read_text(encoding="utf-8"))
        for command in commands_of(line)
    )
)
OURS = [command for command in DOCUMENTED if is_ours(command)]


def subcommand(command: str) -> str:
    """Return which of our commands a line runs."""
    words = shlex.split(command.rpartition("| ")[2])
    if words[0] == "torchrun":
        found = TORCHRUN.match(command)
        assert found, f"not in the form of `torchrun ... -m dedetr_cli COMMAND`: {command}"
        return found.group(2)
    return words[1]


def test_every_line_is_a_command_that_we_know() -> None:
    assert len(OURS) > 20
    for command in DOCUMENTED:
        if is_ours(command):
            assert subcommand(command) in COMMANDS | {"--help", "--version"}, command
        else:
            assert command.split()[0] in OTHERS, command


def test_every_link_to_a_file_leads_somewhere() -> None:
    for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"


def test_code_blocks_are_read_as_a_shell_reads_them() -> None:
    text = (
        "dedetr a\n\n    dedetr b \\\n        --c   # d\n\n```yaml\ndedetr e\n```\n```bash\ndedetr f && dedetr g\n```\n"
    )
    lines = code_lines(text)
    assert [command for line in lines for command in commands_of(line)] == ["dedetr b --c", "dedetr f", "dedetr g"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the documents name: sources, data in every layout, a run, weights, photographs."""
    folder = tmp_path_factory.mktemp("documented")
    assert typed("dedetr prepare-data", folder) == 0
    give_it_a_test_split(folder / "data")
    make_layouts(folder / "data")
    for name in ("labelled/images", "VOC"):
        make_voc(folder / "path" / "to" / name, num_images=10)
    make_voc(folder / "path" / "to" / "BCCD", {"train": ["a0", "a1"], "val": ["a2"], "test": ["a3"]})
    shutil.copytree(folder / "images", folder / "photos")
    torch.save(synthetic_checkpoint(Golden("dela-detr")), folder / "dela-detr.pth")
    for command in OURS:
        if subcommand(command) == "subsample":
            assert typed(command, folder) == 0
    assert typed("dedetr subsample --rate 0.05", folder) == 0
    assert typed(f"dedetr train --subset 0.05 --out runs/tiny {shlex.join(TINY)}", folder) == 0
    return folder


def typed(command: str, cwd: Path) -> int:
    """Return the exit code of a command: `dedetr` in this process, which has loaded PyTorch already."""
    words = shlex.split(command)
    if words[0] != "dedetr":
        return subprocess.run(["sh", "-c", command], cwd=cwd, check=False, timeout=300).returncode
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            main()
    return int(stopped.value.code or 0)


def give_it_a_test_split(data: Path) -> None:
    """Let the val images be test images too, as some data sets have them."""
    described = yaml.safe_load((data / "dataset.yaml").read_text())
    described["splits"]["test"] = described["splits"]["val"]
    (data / "dataset.yaml").write_text(yaml.safe_dump(described))


def make_layouts(data: Path) -> None:
    """Make the reference's own tree: COCO with 800 images, so that 1 % is a batch; Cityscapes; a subset file."""
    make_coco_layout(data / "coco", num_train=800)
    make_cityscapes_layout(data / "cityscapes", data / "CocoFormatAnnos")
    for file in (data / "CocoFormatAnnos").iterdir():
        # The names that ids 3 and 7 have in the head of a reference checkpoint.
        file.write_text(file.read_text().replace('"cat"', '"train"').replace('"dog"', '"bicycle"'))
    content = coco_dict(800)
    content["images"] = content["images"][:8]  # the reference leaves all annotations in
    write_json(data / "CocoFormatAnnos" / "instances_train2017_sample1182.json", content)


@pytest.mark.parametrize("command", OURS)
def test_a_documented_command_works(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Nothing of the machine's own: neither its home, its weights, its accelerator, nor a network.
    environment = {
        "HOME": str(tmp_path), "TORCH_HOME": str(tmp_path), "DEDETR_RUN__DEVICE": "cpu", "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline", "PET_MASTER_PORT": str(free_port()), "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    require_packages(command, folder)
    is_training = subcommand(command) == "train"
    where = folder
    if subcommand(command) == "prepare-data":
        where = tmp_path
        (tmp_path / "path").symlink_to(folder / "path")
        if "prepare-data data" in command:  # a copy: what is prepared may replace it
            others = shutil.ignore_patterns("coco", "cityscapes", "CocoFormatAnnos")
            shutil.copytree(folder / "data", tmp_path / "data", ignore=others)
    before = sorted((folder / "runs").iterdir())
    code = typed(command + " --dry-run" * (is_training and "--dry-run" not in command), where)
    said = capfd.readouterr()
    assert code == 0, f"{command}\n{said.out}\n{said.err}"
    if is_training:
        assert sorted((folder / "runs").iterdir()) == before
        assert not list(tmp_path.rglob("*.pth"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def require_packages(command: str, folder: Path) -> None:
    """Skip a line whose extra is not installed; make the weight file that it names."""
    for package in ("wandb", "tensorboard"):
        if f"--{package}" in command:
            pytest.importorskip(package)
    named = re.search(r"timm/(\S+) --backbone-weights (\S+)", command)
    if named and not (folder / named.group(2)).exists():
        timm = pytest.importorskip("timm")
        from safetensors.torch import save_file

        state = timm.create_model(named.group(1), pretrained=False).state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / named.group(2))
