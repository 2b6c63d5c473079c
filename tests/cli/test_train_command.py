"""The flags of `dedetr train`, what it prints of its settings, and what it checks without training."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dedetr_cli.app import main
from tests.cli.conftest import TINY, dedetr

Train = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """The command `dedetr train` in this process, where PyTorch is loaded once: exit code, stdout, stderr."""

    def run(*arguments: str | Path, cwd: Path, **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["dedetr", "train", *map(str, arguments)])
            patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        captured = capsys.readouterr()
        return int(str(ended.value.code)), captured.out, captured.err

    return run


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return all files below a folder, each with its size and the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "1.5"], ["--epochs", "valid int"]),
        (["--steps", "0"], ["--steps", "greater than 0"]),
        (["--steps", "9", "--epochs", "9"], ["--epochs, --steps", "one of them"]),
        (["--accumulate", "0"], ["--accumulate", "greater than 0"]),
        (["--precision", "fp16"], ["--precision", "'float16'", "'fp16'"]),
        (["--ema", "1"], ["--ema", "less than 1"]),
        (["--ema", "nan"], ["--ema", "nan"]),
        (["--schedule", "linear"], ["--schedule", "'cosine'"]),
        (["--lr-drop", "-1"], ["--lr-drop", "greater than or equal to 0"]),
        (["--lr-drop", "3", "--schedule", "cosine"], ["--lr-drop", "--schedule step"]),
        (["--warmup-steps", "-1"], ["--warmup-steps"]),
        (["--weight-decay", "-1"], ["--weight-decay"]),
        (["--lr-backbone", "-1"], ["--lr-backbone"]),
        (["--patience", "0"], ["--patience"]),
        (["--repeat-label", "0"], ["--repeat-label"]),
        (["--repeat-ratio", "1.5"], ["--repeat-ratio", "less than or equal to 1"]),
        (["--repeat-label", "2", "--repeat-ratio", "0.5"], ["--repeat-label", "--repeat-ratio", "exclude each other"]),
        (["--sample-repeat", "0"], ["--sample-repeat"]),
        (["--num-queries", "0"], ["--num-queries"]),
        (["--nms-iou", "2"], ["--nms-iou"]),
        (["--max-long-side", "100"], ["--max-long-side", "is less than short_side 800"]),
        (["--workers", "-1"], ["--workers"]),
        (["--seed", "-1"], ["--seed"]),
        (["--set", "run.loggers=[mlflow]"], ["--set run.loggers", "'tensorboard'"]),
        (["--nproc", "0"], ["--nproc"]),
        (["--nproc", "2", "--lr", "-1"], ["--lr", "greater than 0"]),
        (["--resume", "--config", "my.yaml"], ["--config", "own settings"]),
        (["--resume", "--weights", "model.pt"], ["--weights", "own settings"]),
        (["--override"], ["--override", "--resume"]),
    ],
    ids=" ".join,
)
def test_f76_a_bad_flag_is_named(train: Train, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    code, _, said = train(*flags, cwd=tmp_path)
    assert code == 2, said
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


EVERY_FLAG: dict[str, tuple[str, Any]] = {
    "--model": ("model.name", "de-conddetr"),
    "--epochs": ("schedule.epochs", 7),
    "--batch-size": ("data.batch_size", 6),
    "--lr": ("optimizer.lr", 3e-4),
    "--device": ("run.device", "cpu"),
    "--subset": ("data.subset", "0.05"),
    "--short-side": ("data.short_side", 100),
    "--max-long-side": ("data.max_long_side", 150),
    "--sample-repeat": ("data.sample_repeat", 2),
    "--workers": ("data.num_workers", 0),
    "--backbone": ("backbone.name", "resnet18"),
    "--backbone-weights": ("backbone.weights", "mine.pth"),
    "--num-queries": ("model.num_queries", 50),
    "--nms": ("postprocess.nms", True),
    "--nms-iou": ("postprocess.nms_iou", 0.5),
    "--schedule": ("schedule.kind", "step"),
    "--lr-drop": ("schedule.lr_drop_epoch", 5),
    "--warmup-steps": ("schedule.warmup_steps", 9),
    "--lr-backbone": ("optimizer.backbone_lr", 2e-5),
    "--weight-decay": ("optimizer.weight_decay", 0.01),
    "--accumulate": ("optimizer.accumulate", 3),
    "--precision": ("run.precision", "bfloat16"),
    "--ema": ("optimizer.ema_decay", 0.99),
    "--patience": ("schedule.patience", 4),
    "--freeze": ("optimizer.freeze", ["encoder.*"]),
    "--compile": ("run.compile", True),
    "--seed": ("run.seed", 1),
    "--repeat-ratio": ("label_augmentation.repeat_ratio", 0.25),
    "--one-stage-match": ("label_augmentation.two_stage_match", False),
}


def test_every_flag_sets_what_it_says(train: Train, demo: Path) -> None:
    words: list[str] = ["--tensorboard", "--wandb"]
    for flag, (_, value) in EVERY_FLAG.items():
        words += [flag] if isinstance(value, bool) else [flag, value[0] if isinstance(value, list) else str(value)]
    code, printed, said = train(*words, "--show-config", "--json", cwd=demo)
    assert code == 0, said
    document = json.loads(printed)
    assert (document["schema_version"], document["command"]) == (1, "train")
    found = document["config"]
    for flag, (key, value) in EVERY_FLAG.items():
        assert found[key] == {"value": value, "origin": flag}
    _, printed, _ = train("--steps", "90", "--show-config", "--json", cwd=demo)
    assert json.loads(printed)["config"]["schedule.steps"] == {"value": 90, "origin": "--steps"}
    assert found["run.loggers"] == {"value": ["tensorboard", "wandb"], "origin": "--tensorboard, --wandb"}
    assert found["label_augmentation.repeat_time"] == {"value": None, "origin": "--repeat-ratio"}


def test_show_config_names_every_origin_and_can_be_read_again(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "mine.yaml").write_text("data:\n  num_workers: 1\n")
    flags = ["--config", tmp_path / "mine.yaml", "--set", "loss.giou_weight=3", "--repeat-ratio", "0.25"]
    # Too short for the sides of the default: only with the data set's recipe do these settings fit together.
    flags += ["--max-long-side", "200", "--freeze", "a b: #c", "--freeze", "*"]
    environment = {"DEDETR_RUN__SEED": "7", "PYTHONPATH": str(tmp_path)}
    before = tree(demo)
    done = dedetr("train", *flags, "--show-config", cwd=demo, **environment)
    assert done.returncode == 0, done.stderr
    assert "took the recipe 'demo'" in done.stderr
    for line, origin in (
        ("dropout: 0.0", "preset demo"),
        ("giou_weight: 3.0", "--set loss.giou_weight"),
        ("nms: true", "model dela-detr"),
        ("norm: batch_norm", "default, as backbone.weights is null"),
        ("num_workers: 1", f"{tmp_path / 'mine.yaml'}:2"),
        ("pre_norm: false", "default"),
        ("repeat_ratio: 0.25", "--repeat-ratio"),
        ("seed: 7", "DEDETR_RUN__SEED"),
    ):
        assert any(
            row.split("#")[0].strip() == line and row.endswith(f"# {origin}") for row in done.stdout.splitlines()
        )
    assert yaml.safe_load(done.stdout)["optimizer"]["freeze"] == ["a b: #c", "*"]
    (tmp_path / "all.yaml").write_text(done.stdout)
    again = dedetr("train", "--config", tmp_path / "all.yaml", "--show-config", cwd=demo, PYTHONPATH=str(tmp_path))
    assert yaml.safe_load(again.stdout) == yaml.safe_load(done.stdout)
    assert again.stdout.count(f"# {tmp_path / 'all.yaml'}:") == again.stdout.count("  # ")
    assert tree(demo) == before


def test_show_config_of_a_run_to_resume(train: Train, trained: Path) -> None:
    code, printed, said = train(
        "--resume", "--out", "runs/tiny", "--epochs", "2", "--show-config", "--json", cwd=trained
    )
    assert code == 0, said
    found = json.loads(printed)["config"]
    assert found["schedule.epochs"] == {"value": 2, "origin": "--epochs"}
    assert found["model.hidden_dim"]["value"] == 32
    assert found["model.hidden_dim"]["origin"].startswith("runs/tiny/config.yaml:")


def test_weights_decide_on_the_architecture_unless_it_is_named(train: Train, trained: Path) -> None:
    flags = ["--weights", "runs/tiny", "--preset", "small", "--set", "model.dropout=0.3", "--show-config", "--json"]
    code, printed, said = train(*flags, cwd=trained)
    assert code == 0, said
    found = json.loads(printed)["config"]
    assert found["model.hidden_dim"] == {"value": 32, "origin": "weights runs/tiny"}
    assert found["model.num_encoder_layers"] == {"value": 1, "origin": "weights runs/tiny"}
    assert found["backbone.name"] == {"value": "resnet10", "origin": "weights runs/tiny"}
    assert found["model.dropout"] == {"value": 0.3, "origin": "--set model.dropout"}
    assert found["data.short_side"] == {"value": 224, "origin": "preset small"}


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(train: Train, demo: Path) -> None:
    before = tree(demo)
    flags = [*TINY[2:], "--steps", "20", "--accumulate", "2", "--freeze", "backbone.*", "--lr-drop", "9"]
    code, printed, said = train("--dry-run", *flags, "--nproc", "3", "--json", cwd=demo)
    assert code == 0, said
    plan = json.loads(printed)
    assert plan["num_parameters"] > plan["num_trained_parameters"] > 0
    assert plan["num_parameters"] - plan["num_trained_parameters"] > 4_000_000  # a ResNet-10
    expected = {
        "schema_version": 1, "command": "train", "dry_run": True, "run_folder": None, "model": "dela-detr",
        "backbone": "resnet10", "device": "cpu", "weights_to_fetch": None, "num_train_images": 240,
        "classes": ["circle", "cross", "ring", "square", "star", "triangle"], "num_val_images": 60, "batch_size": 16,
        "num_processes": 3, "num_micro_batches": 2, "largest_micro_batch": 3, "steps_per_epoch": 15, "num_steps": 20,
        "num_epochs": 2, "learning_rates": {"model": 1e-3}, "schedule": "step", "precision": "float32",
    }  # fmt: skip
    assert {key: value for key, value in plan.items() if not key.endswith("_parameters")} == expected
    assert "240 images, the train split" in said
    assert "drop after epoch 9, which 2 epochs do not reach" in said
    assert tree(demo) == before
    code, printed, said = train("--dry-run", *flags, "--out", "runs/new", cwd=demo)
    assert code == 0, said
    assert "20, in 2 epochs" in printed
    assert "runs/new" in printed
    assert tree(demo) == before
    assert not (demo / "runs" / "new").exists()


TORCHRUN = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_under_torchrun_one_process_makes_the_dry_run(train: Train, demo: Path) -> None:
    assert train("--dry-run", *TINY, cwd=demo, **TORCHRUN, RANK="1") == (0, "", "")
    assert train("--show-config", cwd=demo, **TORCHRUN, RANK="1") == (0, "", "")
    code, printed, said = train("--dry-run", *TINY, "--json", cwd=demo, **TORCHRUN, RANK="0")
    assert code == 0, said
    assert json.loads(printed)["num_processes"] == 2
    code, _, said = train(*TINY, "--nproc", "2", cwd=demo, **TORCHRUN, RANK="0")
    assert code == 2
    assert "torchrun decides" in said


def test_weights_that_are_absent_are_named_or_refused(train: Train, demo: Path, tmp_path: Path) -> None:
    flags = ["--preset", "none", "--model", "detr", "--backbone", "resnet18", *TINY, "--dry-run", "--json"]
    code, _, said = train(*flags, cwd=demo, TORCH_HOME=str(tmp_path))
    assert code == 5
    assert "resnet18-f37072fd.pth" in said
    code, printed, said = train(*flags, "--download", cwd=demo, TORCH_HOME=str(tmp_path))
    assert code == 0, said
    assert json.loads(printed)["weights_to_fetch"] == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        pytest.param(["--freeze", "encodr.*"], 2, "--freeze: optimizer.freeze", id="freeze"),
        pytest.param(["--batch-size", "1", "--accumulate", "2"], 2, "--accumulate: optimizer.accumulate", id="batch"),
        pytest.param(["--num-queries", "3"], 2, "--num-queries: model.num_queries", id="queries"),
        pytest.param(["--subset", "0.77"], 3, "subsample", id="subset"),
        pytest.param(["--out", "images"], 2, "not empty", id="occupied"),
        pytest.param(["--out", "data/dataset.yaml/run"], 5, "is a file", id="file"),
        pytest.param(["--weights", "nowhere.pt"], 4, "nowhere.pt", id="weights"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(
    train: Train, demo: Path, tmp_path: Path, dry: list[str], flags: list[str], code: int, word: str
) -> None:
    before = tree(demo)
    out = [] if "--out" in flags else ["--out", tmp_path / "run"]
    found, _, said = train(*dry, *TINY, *out, *flags, cwd=demo)
    assert found == code, said
    assert word in said
    assert not (tmp_path / "run").exists()
    assert tree(demo) == before


def test_a_dry_run_looks_at_every_image(train: Train, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo / "data", tmp_path / "data")
    listed = json.loads((tmp_path / "data" / "annotations" / "val.json").read_text())["images"]
    victim = next((tmp_path / "data").rglob(Path(listed[-1]["file_name"]).name))
    victim.write_bytes(victim.read_bytes()[:100])
    code, _, said = train("--dry-run", *TINY, cwd=tmp_path)
    assert code == 3
    assert victim.name in said


def test_a_dry_run_of_a_run_to_resume(train: Train, trained: Path) -> None:
    before = tree(trained)
    code, printed, said = train("--resume", "--out", "runs/tiny", "--dry-run", "--json", cwd=trained)
    assert code == 0, said
    assert json.loads(printed)["run_folder"] == "runs/tiny"
    code, _, said = train("--resume", "--out", "runs/tiny", "--dry-run", "--lr", "0.5", cwd=trained)
    assert code == 2
    assert "optimizer.lr was 0.001, now 0.5" in said
    assert train("--resume", "--out", "runs/tiny", "--dry-run", "--lr", "0.5", "--override", cwd=trained)[0] == 0
    code, _, said = train("--resume", "--out", "runs/tiny", "--dry-run", "--set", "model.hidden_dim=64", cwd=trained)
    assert code == 4
    assert "model.hidden_dim was 32, now 64" in said
    assert tree(trained) == before


def test_f71_a_folder_that_cannot_be_made_is_refused_before_the_data_is_read(train: Train, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for flags in ([], ["--nproc", "2"]):
        code, _, said = train("--preset", "none", "--out", "notes.txt/run", *flags, cwd=tmp_path)
        assert code == 5, said
        assert "is a file" in said


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_f71_a_place_that_cannot_be_written_is_refused_before_the_data_is_read(train: Train, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for flags in ([], ["--out", "run"]):
            code, _, said = train("--preset", "none", *flags, cwd=tmp_path)
            assert code == 5, said
            assert "cannot write" in said
    finally:
        tmp_path.chmod(0o700)


def test_cached_images_are_said_and_an_unset_cache_says_nothing(train: Train, demo: Path) -> None:
    code, _, said = train("--dry-run", "--cache", *TINY[2:], cwd=demo)
    assert code == 0, said
    assert re.search(r"train: decoded images are kept in memory: [\d,]+ MiB", said)
    assert "val: decoded images are kept" in said
    _, _, said = train("--dry-run", "--no-cache", *TINY[2:], cwd=demo)
    assert "decoded images" not in said
