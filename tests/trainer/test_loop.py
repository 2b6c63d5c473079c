from __future__ import annotations

import math
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from core.assembly import Assembly
from core.datasets.loaders import EvalLoader
from core.device import place
from core.errors import CheckpointError, DivergedError, Interrupted, UsageError
from core.evaluation.coco import CocoEvaluator
from core.evaluation.run import evaluate
from core.models.weights import load_into, read_weights
from core.trainer.checkpoint import find_model_file
from core.trainer.pointers import pointed_to
from core.trainer.records import read_records
from core.trainer.reporter import CheckpointSaved, Evaluated, NullReporter, RunStarted, StepDone
from core.trainer.run_folder import DatasetIdentity
from core.trainer.signals import StopSignals
from tests.trainer.comparison import assert_same_run
from tests.trainer.tiny import Recorder, tiny_assembly, tiny_config, tiny_datasets, tiny_run

STEPS_PER_EPOCH = 4


class Stopper(NullReporter):
    """Behaves like a signal at the n-th event of a kind."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind = kind
        self.left = count

    def _count(self, kind: str) -> None:
        self.left -= kind == self.kind
        if kind == self.kind and self.left == 0:
            raise Interrupted("stopped by a test", exit_code=143)

    def step_done(self, event: StepDone) -> None:
        self._count("step")

    def evaluation_batch_done(self) -> None:
        self._count("evaluation batch")

    def evaluated(self, event: Evaluated) -> None:
        self._count("evaluated")

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        self._count("saved")


def test_what_a_run_tells_and_leaves(tmp_path: Path) -> None:
    recorder = Recorder()
    config = tiny_config(
        schedule={"epochs": 3}, run={"eval_every": 2, "checkpoint_every": 2, "background_saves": False}
    )
    result = tiny_run(tmp_path / "run", config, reporter=recorder)
    kinds = [type(event) for event in recorder.events]
    epoch = [StepDone] * STEPS_PER_EPOCH
    evaluation = [Evaluated, CheckpointSaved]
    assert kinds == [RunStarted, *epoch, *epoch, *evaluation, *epoch, *evaluation]
    started, last_step = recorder.events[0], recorder.events[-3]
    assert (started.num_steps, started.first_step, started.num_train_images, started.num_val_images) == (12, 0, 8, 8)
    assert (last_step.epoch, last_step.step, last_step.num_steps) == (3, 12, 12)
    assert last_step.images_per_second > 0
    assert 0 <= last_step.data_wait_share <= 1
    assert 0 < recorder.events[3].eta_seconds < 600
    assert [event.learning_rate for event in recorder.events if isinstance(event, StepDone)] == pytest.approx(
        [1e-3 / 3, 2e-3 / 3, *[1e-3] * 6, *[1e-4] * 4]
    )
    assert (result.num_epochs, result.num_steps) == (3, 12)
    assert result.minutes > 0
    assert result.evaluation is not None
    lines = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
        ("train", 1, 3), ("train", 1, 4), ("train", 2, 6), ("train", 2, 8), ("eval", 2, 8),
        ("train", 3, 9), ("train", 3, 12), ("eval", 3, 12),
    ]  # fmt: skip
    assert lines[-1]["stats"] == result.evaluation.stats
    assert len(lines[-1]["per_class"]) == 3
    losses = [event.loss for event in recorder.events if isinstance(event, StepDone)]
    assert lines[0]["loss"] == pytest.approx(sum(losses[:3]) / 3)
    assert lines[0]["terms"].keys() >= {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0"}


def test_the_saved_model_is_the_evaluated_one(unbroken: Path) -> None:
    assembly = tiny_assembly(tiny_config())
    assert not load_into(assembly.model, read_weights(find_model_file(unbroken / "checkpoints" / "last"))).missing
    place(assembly.model, torch.device("cpu"))
    _, validation = tiny_datasets(unbroken.parent / "images-8-None", assembly)
    evaluator = CocoEvaluator(validation.annotations, assembly.classes)
    loader = EvalLoader(validation.dataset, assembly.config.data)
    result = evaluate(assembly.model, assembly.postprocess, loader, evaluator, torch.device("cpu"))
    assert read_records(unbroken / "metrics.jsonl")[-1]["stats"] == result.stats


def test_a_run_learns(tmp_path: Path) -> None:
    config = tiny_config(
        model={"dropout": 0.0}, data={"augment": False}, schedule={"epochs": 12, "lr_drop_epoch": None},
        run={"eval_every": 12, "checkpoint_every": 12, "log_every": 4},
    )  # fmt: skip
    tiny_run(tmp_path / "run", config, validate=False)
    losses = [line["loss"] for line in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_weights_of_every_part_change(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", tiny_config(schedule={"epochs": 1}), validate=False)
    before = tiny_assembly(tiny_config()).model.state_dict()
    after = read_weights(find_model_file(tmp_path / "run")).state
    same = [key for key in before if torch.equal(before[key], after[key])]
    assert not same


@pytest.mark.parametrize(
    ("kind", "count"),
    [("step", 1), ("step", 6), ("step", 8), ("evaluation batch", 7), ("evaluated", 2), ("saved", 1)],
)
def test_stopped_and_resumed_is_the_same_to_the_last_bit(unbroken: Path, tmp_path: Path, kind: str, count: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="saved in") as stopped:
        tiny_run(folder, tiny_config(run={"background_saves": kind != "saved"}), reporter=Stopper(kind, count))
    assert "--resume" in (stopped.value.hint or "")
    recorder = Recorder()
    result = tiny_run(folder, resume=True, reporter=recorder)
    assert recorder.warnings == []
    assert recorder.events[0].first_step == {"step": count, "evaluation batch": 8, "evaluated": 8, "saved": 4}[kind]
    assert result.num_steps == 12
    assert_same_run(folder, unbroken)


def test_f55_the_number_of_data_workers_changes_nothing(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        tiny_run(folder, tiny_config(data={"num_workers": 2}), reporter=Stopper("step", 6))
    tiny_run(folder, tiny_config(data={"num_workers": 1}), resume=True)
    assert_same_run(folder, unbroken)


def test_what_the_caller_draws_changes_nothing(unbroken: Path, tmp_path: Path) -> None:
    class Drawing(NullReporter):
        def step_done(self, event: StepDone) -> None:
            torch.rand(event.step)

    torch.manual_seed(5)
    expected = torch.rand(1)
    tiny_run(tmp_path / "run", reporter=Drawing(), change=lambda _: torch.manual_seed(5) and None)
    assert torch.equal(torch.rand(1), expected)
    assert_same_run(tmp_path / "run", unbroken)


def test_f44_damaged_newest_checkpoint_goes_back_one_and_ends_the_same(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        tiny_run(folder, reporter=Stopper("step", 10))
    damaged = folder / "checkpoints" / "step-00000010" / "model.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    recorder = Recorder()
    tiny_run(folder, resume=True, reporter=recorder)
    assert len(recorder.warnings) == 1
    assert "step-00000010" in recorder.warnings[0]
    assert "from step 8" in recorder.warnings[0]
    assert recorder.events[0].first_step == 8
    shutil.rmtree(folder / "checkpoints" / "step-00000010.damaged")
    assert_same_run(folder, unbroken)


def test_finished_run_resumed_evaluates_and_writes_nothing(unbroken: Path, tmp_path: Path) -> None:
    before = (unbroken / "metrics.jsonl").read_bytes()
    recorder = Recorder()
    result = tiny_run(unbroken, resume=True, reporter=recorder)
    assert result.evaluation is not None
    assert result.evaluation.stats == read_records(unbroken / "metrics.jsonl")[-1]["stats"]
    assert "nothing is left" in recorder.warnings[0]
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_f49_override_trains_on_with_other_settings(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", tiny_config(schedule={"epochs": 1}))
    longer = tiny_config(schedule={"epochs": 2}, optimizer={"lr": 1e-5})
    with pytest.raises(UsageError, match=r"optimizer\.lr .*schedule\.epochs"):
        tiny_run(tmp_path / "run", longer, resume=True)
    recorder = Recorder()
    result = tiny_run(tmp_path / "run", longer, resume=True, override=True, reporter=recorder)
    assert result.num_steps == 8
    assert recorder.events[-3].learning_rate == pytest.approx(1e-5)


def test_f49_resume_with_another_model_or_data_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tiny_run(folder, tiny_config(schedule={"epochs": 1}), validate=False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"model\.num_queries was 10, now 12"):
        tiny_run(folder, tiny_config(schedule={"epochs": 1}, model={"num_queries": 12}), resume=True)
    other = DatasetIdentity("scenes", {"train": "0" * 64})
    with pytest.raises(UsageError, match="annotations of train"):
        tiny_run(folder, tiny_config(schedule={"epochs": 1}), resume=True, identity=other)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_checkpoint_is_best_by_ap(tmp_path: Path, unbroken: Path) -> None:
    evaluations = [line for line in read_records(unbroken / "metrics.jsonl") if line["kind"] == "eval"]
    best = [line["step"] for line in evaluations if line["is_best"]][-1]
    assert (unbroken / "checkpoints" / "best").resolve().name == f"step-{best:08d}"
    tiny_run(tmp_path / "run", tiny_config(schedule={"epochs": 1}), validate=False)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["last", "step-00000004"]


def test_fewer_images_than_a_batch_train(tmp_path: Path) -> None:
    result = tiny_run(tmp_path / "run", tiny_config(schedule={"epochs": 2}), num_images=1)
    assert result.num_steps == 2


def test_f14_batch_without_boxes_trains(tmp_path: Path) -> None:
    """The third image of three has none; each batch is one image."""
    config = tiny_config(
        schedule={"epochs": 2}, data={"batch_size": 1}, backbone={"norm": "group_norm"}, run={"log_every": 1}
    )
    tiny_run(tmp_path / "run", config, num_images=3)
    lines = [line for line in read_records(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert len(lines) == 6
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert any(line["terms"]["loss_bbox"] == 0 for line in lines)


@pytest.mark.parametrize("name", ["detr", "de-detr", "conddetr", "dela-conddetr"])
def test_every_kind_of_model_trains(tmp_path: Path, name: str) -> None:
    result = tiny_run(tmp_path / "run", tiny_config(model={"name": name}, schedule={"epochs": 1}))
    assert result.num_steps == STEPS_PER_EPOCH


class _BadGradient:
    """Makes the gradient of the queries NaN at one step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, assembly: Assembly) -> None:
        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            self.left -= 1
            return gradient * math.nan if self.left == 0 else gradient

        assembly.model.query_embed.weight.register_hook(spoil)


def _nan_weights(assembly: Assembly) -> None:
    with torch.no_grad():
        assembly.model.query_embed.weight[0, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "sections", "step", "named"),
    [
        (_nan_weights, {}, 1, "matching cost"),
        (None, {"loss": {"class_weight": 3e38}}, 1, "the total is inf"),
        (_BadGradient(6), {}, 6, "norm of the gradients is nan"),
    ],
)
def test_f56_numbers_that_are_not_finite_stop_the_run_before_the_update(
    tmp_path: Path, change: Any, sections: dict[str, Any], step: int, named: str
) -> None:
    changed: list[Assembly] = []

    def keep(assembly: Assembly) -> None:
        if change:
            change(assembly)
        changed.append(assembly)

    with pytest.raises(DivergedError, match=named) as diverged:
        tiny_run(tmp_path / "run", tiny_config(**sections), change=keep)
    assert diverged.value.exit_code == 6
    assert f"at step {step} " in str(diverged.value)
    kept = torch.load(tmp_path / "run" / "diverged" / f"step-{step:08d}.pt", weights_only=True)
    (part,) = kept["diverged_step"]["parts"]
    assert all(str(image_id) in str(diverged.value) for image_id in part["image_ids"])
    assert part["pixels"].shape[0] == 2
    state = changed[0].model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept["model"].items() if "query_embed" not in key)
    parameters = [value for key, value in state.items() if "query_embed" not in key]
    assert all(value.isfinite().all() for value in parameters)
    if step > STEPS_PER_EPOCH:
        assert pointed_to(tmp_path / "run" / "checkpoints" / "last") == tmp_path / "run/checkpoints/step-00000005"


def test_images_too_small_for_batch_norm_are_named(tmp_path: Path) -> None:
    config = tiny_config(data={"short_side": 16, "max_long_side": 16, "batch_size": 1, "augment": False})
    with pytest.raises(UsageError, match="batch norm has a single value") as refused:
        tiny_run(tmp_path / "run", config, size=(16, 16))
    assert "group_norm" in (refused.value.hint or "")


def test_signal_between_steps_saves_before_the_next(tmp_path: Path, unbroken: Path) -> None:
    class Terminator(NullReporter):
        def step_done(self, event: StepDone) -> None:
            if event.step == 5:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 5 of 12") as stopped:
        tiny_run(tmp_path / "run", reporter=Terminator())
    assert stopped.value.exit_code == 143
    tiny_run(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", unbroken)
    with StopSignals() as signals:
        signals.poll()


def test_no_warnings_of_ours(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_run(tmp_path / "run", tiny_config(schedule={"epochs": 1}))
