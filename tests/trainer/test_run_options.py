"""What a run can be told besides its epochs: steps, patience, averages, precision, accumulation, repeated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.config.schema import Config
from core.errors import UsageError
from core.models.weights import read_weights
from core.trainer.checkpoint import CheckpointFolder
from core.trainer.records import read_records
from core.trainer.reporter import CheckpointSaved, Evaluated, NullReporter, StepDone
from tests.trainer.comparison import assert_same, assert_same_run
from tests.trainer.tiny import Recorder, tiny_config, tiny_run

# Eight images in batches of two: four steps an epoch.


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_records(folder / "metrics.jsonl") if line["kind"] == kind]


class BreakOff(NullReporter):
    """Ends the process's run after a step, without a word and without saving."""

    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def step_done(self, event: StepDone) -> None:
        if event.step == self.after_step:
            raise KeyboardInterrupt


def assert_breaking_off_changes_nothing(config: Config, folder: Path, after_step: int) -> None:
    """Run in `whole`, and in `run` with a break: both end with the same bits."""
    tiny_run(folder / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(folder / "run", config, reporter=BreakOff(after_step))
    tiny_run(folder / "run", config, resume=True)
    assert_same_run(folder / "run", folder / "whole")


def test_a_run_of_so_many_steps_ends_inside_an_epoch_and_can_be_made_longer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    schedule = {"steps": 6, "kind": "constant"}
    result = tiny_run(folder, tiny_config(schedule=schedule))
    assert (result.num_steps, result.num_epochs) == (6, 2)
    assert [(line["epoch"], line["step"]) for line in lines(folder, "eval")] == [(1, 4), (2, 6)]

    again = Recorder()
    tiny_run(folder, tiny_config(schedule=schedule), resume=True, reporter=again)
    assert not [event for event in again.events if isinstance(event, StepDone)]
    assert "nothing is left" in again.warnings[0]

    longer = tiny_config(schedule={**schedule, "steps": 9})
    tiny_run(folder, longer, resume=True, override=True)
    tiny_run(tmp_path / "whole", longer)
    ours, theirs = (CheckpointFolder(path / "checkpoints", 2).load_newest(NullReporter()) for path in
                    (folder, tmp_path / "whole"))  # fmt: skip
    assert_same(dict(ours.weights.state), dict(theirs.weights.state))


def test_patience_ends_a_run_that_grows_no_better_and_it_stays_ended(tmp_path: Path) -> None:
    # Without validation boxes found, AP stays 0: the first evaluation is the best.
    folder, reporter = tmp_path / "run", Recorder()
    config = tiny_config(
        schedule={"epochs": 9, "patience": 2, "lr_drop_epoch": None}, optimizer={"lr": 1e-9, "backbone_lr": 0.0}
    )
    result = tiny_run(folder, config, reporter=reporter)
    assert result.num_epochs == 3
    assert "without a better AP" in reporter.warnings[-1]
    saved = [event for event in reporter.events if isinstance(event, CheckpointSaved)]
    assert saved[-1].step == 12
    again = Recorder()
    tiny_run(folder, config, resume=True, reporter=again)
    assert not [event for event in again.events if isinstance(event, StepDone)]


def test_averaged_weights_are_evaluated_and_kept_and_resumed_to_the_last_bit(tmp_path: Path) -> None:
    config = tiny_config(optimizer={"ema_decay": 0.9})
    folder = tmp_path / "run"
    assert_breaking_off_changes_nothing(config, tmp_path, after_step=6)

    checkpoint = CheckpointFolder(folder / "checkpoints", 2).load_newest(NullReporter())
    kept, trained = checkpoint.weights.state, checkpoint.training["model"]
    assert kept.keys() == trained.keys()
    differing = [key for key in kept if not torch.equal(kept[key], trained[key])]
    assert "query_embed.weight" in differing
    plain = tmp_path / "plain"
    tiny_run(plain, tiny_config())
    last = read_weights(plain / "checkpoints" / "last" / "model.pt").state
    assert_same(dict(trained), dict(last))  # the average changes nothing in the weights that are trained


@pytest.mark.parametrize("first", [None, 0.9])
def test_averages_may_begin_or_end_where_a_run_is_resumed(tmp_path: Path, first: float | None) -> None:
    folder, second = tmp_path / "run", 0.9 if first is None else None
    tiny_run(folder, tiny_config(optimizer={"ema_decay": first}, schedule={"epochs": 1}))
    before = CheckpointFolder(folder / "checkpoints", 2).load_newest(NullReporter())
    trained = before.training.get("model", before.weights.state)
    seen: dict[str, torch.Tensor] = {}

    class Look(NullReporter):
        def run_started(self, event: object) -> None:
            seen.update({key: tensor.clone() for key, tensor in model[0].state_dict().items()})

    model: list[torch.nn.Module] = []
    tiny_run(
        folder,
        tiny_config(optimizer={"ema_decay": second}),
        resume=True,
        override=True,
        reporter=Look(),
        change=lambda assembly: model.append(assembly.model),
    )
    assert_same(seen, dict(trained))  # the weights go on from themselves, never from their average


def test_a_run_resumed_with_larger_batches_makes_the_epochs_that_are_left(tmp_path: Path) -> None:
    folder, schedule = tmp_path / "run", {"epochs": 2, "kind": "cosine"}
    tiny_run(folder, tiny_config(schedule=schedule))
    reporter = Recorder()
    tiny_run(
        folder,
        tiny_config(data={"batch_size": 4}, schedule={**schedule, "epochs": 4}),
        resume=True,
        override=True,
        reporter=reporter,
    )
    steps = [event for event in reporter.events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [9, 10, 11, 12]
    assert {event.num_steps for event in steps} == {12}
    assert all(event.learning_rate > 0 for event in steps[:-1])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_resumes_and_keeps_float32_weights(tmp_path: Path, precision: str) -> None:
    config = tiny_config(run={"precision": precision})
    folder = tmp_path / "run"
    assert_breaking_off_changes_nothing(config, tmp_path, after_step=6)
    state = read_weights(folder / "checkpoints" / "last" / "model.pt").state
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}
    rows = lines(folder, "train")
    assert all(("num_skipped" in row) == (precision == "float16") for row in rows)
    plain = tmp_path / "plain"
    tiny_run(plain, tiny_config())
    assert rows[0]["loss"] == pytest.approx(lines(plain, "train")[0]["loss"], rel=0.1)
    assert rows[0]["loss"] != lines(plain, "train")[0]["loss"]


def test_accumulation_is_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    config = tiny_config(data={"batch_size": 4}, optimizer={"accumulate": 2}, run={"log_every": 1})
    assert_breaking_off_changes_nothing(config, tmp_path, after_step=3)
    with pytest.raises(UsageError, match="cannot be shared"):
        tiny_run(tmp_path / "few", tiny_config(data={"batch_size": 2}, optimizer={"accumulate": 3}))


def test_repeated_images_make_longer_epochs(tmp_path: Path) -> None:
    reporter = Recorder()
    tiny_run(tmp_path / "run", tiny_config(data={"sample_repeat": 3}, schedule={"epochs": 1}), reporter=reporter)
    assert len([event for event in reporter.events if isinstance(event, StepDone)]) == 12
    assert len([event for event in reporter.events if isinstance(event, Evaluated)]) == 1


def test_frozen_parts_stay_as_they_were(tmp_path: Path) -> None:
    before: dict[str, torch.Tensor] = {}
    config = tiny_config(optimizer={"freeze": ["encoder.*", "backbone.*"]}, schedule={"epochs": 1})
    tiny_run(
        tmp_path / "run",
        config,
        change=lambda assembly: before.update({k: v.clone() for k, v in assembly.model.state_dict().items()}),
    )
    after = read_weights(tmp_path / "run" / "checkpoints" / "last" / "model.pt").state
    changed = {key.split(".")[0] for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert changed == {"decoder", "input_proj", "query_embed"}


def test_the_table_of_evaluations_is_there(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    assert rows[0].startswith("epoch,step,")
