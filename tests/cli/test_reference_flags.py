"""docs/reference-flags.md: every flag of the reference is there, and what it names of ours exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from core.config.schema import Config
from dedetr_cli.app import app
from tests.golden_files import Golden

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference-flags.md"

# Typed from the main.py of both repositories, in their order.
NAMES = """
wandb repeat_label repeat_ratio two_stage_match nms nms_thresh nms_remove pool_res init_ref_dim no_box_refine no_ms_roi
lr lr_backbone batch_size weight_decay epochs lr_drop clip_max_norm frozen_weights backbone dilation position_embedding
num_feature_levels enc_layers dec_layers dim_feedforward hidden_dim dropout nheads num_queries pre_norm masks
no_aux_loss set_cost_class set_cost_bbox set_cost_giou mask_loss_coef dice_loss_coef bbox_loss_coef giou_loss_coef
eos_coef sample_rate sample_repeat dataset_file coco_path coco_panoptic_path remove_difficult model output_dir device
seed resume start_epoch eval num_workers world_size dist_url cache_mode
"""
DE_DETRS = NAMES.split()
DE_CONDDETR = [name for name in DE_DETRS if name not in {"nms_remove", "init_ref_dim", "eos_coef"}]
DE_CONDDETR += ["pre_nms", "cls_loss_coef", "focal_alpha"]

# What tests/golden/README.md says was set for the recordings.
SET_IN_GOLDENS = {
    "hidden_dim", "nheads", "enc_layers", "dec_layers", "dim_feedforward", "num_queries", "pre_nms", "dataset_file",
    "model", "device",
}  # fmt: skip


def rows() -> list[list[str]]:
    """Return the cells of the table's rows: reference, default, default, ours, difference."""
    lines = PAGE.read_text(encoding="utf-8").partition("## Every flag")[2].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `--")]


def flag_of(row: list[str]) -> str:
    return row[0].strip("`").removeprefix("--")


def test_the_table_has_every_flag_of_both_repositories_once() -> None:
    found = [flag_of(row) for row in rows()]
    assert len(found) == len(set(found))
    assert set(found) == set(DE_DETRS) | set(DE_CONDDETR)
    assert {flag_of(row) for row in rows() if row[1] != "-"} == set(DE_DETRS)
    assert {flag_of(row) for row in rows() if row[2] != "-"} == set(DE_CONDDETR)


@pytest.mark.parametrize(("name", "column"), [("de-detr", 1), ("de-conddetr", 2)])
def test_names_and_defaults_are_those_of_the_recorded_runs(name: str, column: int) -> None:
    recorded = Golden(name).args
    here = {flag_of(row): row[column] for row in rows() if row[column] != "-"}
    assert {flag.removeprefix("no_") for flag in here} == set(recorded)
    for flag, text in here.items():
        if flag in SET_IN_GOLDENS:
            continue
        value = recorded[flag.removeprefix("no_")]
        assert as_value(text) == (not value if flag.startswith("no_") else value), flag


def as_value(text: str) -> Any:
    if text == "off":
        return False
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def test_what_is_named_of_ours_exists_or_a_reason_stands_there() -> None:
    options = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    for row in rows():
        named = re.findall(r"`([^`]+)`", row[3])
        if not named:
            assert row[3] == "-", row
            assert row[4], f"no reason: {row}"
        for text in named:
            command, _, flag = f"train {text}".rpartition(" ") if text.startswith("-") else text.rpartition(" ")
            if flag.startswith("--"):
                assert flag in options[command], row
            else:
                section, _, key = text.partition("=")[0].partition(".")
                assert key in getattr(Config(), section).model_dump(), row
