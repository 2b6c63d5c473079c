from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.annotations.records import Category
from core.config.schema import Config
from core.errors import CheckpointError, UsageError
from core.models.weights import LoadedWeights
from core.trainer.resume import check_same_data, check_same_run
from core.trainer.run_folder import DatasetIdentity
from tests.datasets.scenes import CLASSES
from tests.trainer.tiny import tiny_config


def saved_by(config: Config, classes: tuple[Category, ...] = CLASSES) -> LoadedWeights:
    return LoadedWeights(Path("model.pt"), {}, classes, config.model_dump(), False, {})


def check(classes: tuple[Category, ...] = CLASSES, override: bool = False, **sections: dict[str, Any]) -> None:
    check_same_run(saved_by(tiny_config()), tiny_config(**sections), classes, override=override)


def test_same_run_passes() -> None:
    check()


@pytest.mark.parametrize(
    "section",
    [
        {"run": {"device": "cuda"}},
        {"run": {"keep_checkpoints": 9}},
        {"data": {"num_workers": 5}},
        {"data": {"root": "moved"}},
    ],
)
def test_what_changes_no_number_may_change(section: dict[str, dict[str, Any]]) -> None:
    check(**section)


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"model": {"name": "detr"}}, "model.name was dela-detr, now detr"),
        ({"model": {"num_queries": 11}}, "model.num_queries was 10, now 11"),
        ({"backbone": {"name": "resnet18"}}, "backbone.name was resnet10, now resnet18"),
    ],
)
def test_f49_another_model_is_refused_with_the_difference(
    sections: dict[str, dict[str, Any]], named: str, override: bool
) -> None:
    with pytest.raises(CheckpointError, match=named) as refused:
        check(override=override, **sections)
    assert refused.value.exit_code == 4


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (CLASSES[:2], "missing here: 90 blue; new here: none"),
        ((*CLASSES, Category(91, "black")), "missing here: none; new here: 91 black"),
        ((*CLASSES[:2], Category(90, "navy")), "missing here: 90 blue; new here: 90 navy"),
        (CLASSES[::-1], "another order"),
    ],
)
def test_f49_other_classes_are_refused_with_the_difference(classes: tuple[Category, ...], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        check(classes, override=True)


def test_f49_other_settings_need_override() -> None:
    changes: dict[str, dict[str, Any]] = {"optimizer": {"lr": 0.5}, "schedule": {"epochs": 9}}
    with pytest.raises(UsageError) as refused:
        check(**changes)
    assert refused.value.exit_code == 2
    assert "optimizer.lr was 0.001, now 0.5" in str(refused.value)
    assert "schedule.epochs was 3, now 9" in str(refused.value)
    check(override=True, **changes)


def test_configuration_of_a_stranger_is_refused() -> None:
    saved = LoadedWeights(Path("model.pt"), {}, CLASSES, {"modle": {}}, False, {})
    with pytest.raises(CheckpointError, match="modle"):
        check_same_run(saved, tiny_config(), CLASSES, override=True)


def test_f49_other_data_needs_override() -> None:
    manifest = {"dataset": {"name": "a", "sha256": {"train": "1", "val": "2"}}}
    check_same_data(manifest, DatasetIdentity("moved", {"train": "1", "val": "2"}), override=False)
    check_same_data(None, DatasetIdentity("a", {"train": "3"}), override=False)
    with pytest.raises(UsageError, match="annotations of train are not"):
        check_same_data(manifest, DatasetIdentity("a", {"train": "3", "val": "2"}), override=False)
    check_same_data(manifest, DatasetIdentity("a", {"train": "3", "val": "2"}), override=True)
