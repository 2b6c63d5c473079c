"""The configuration: layers, origins, and every way to get it wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.layers import (
    Layer,
    assignments_layer,
    environment_layer,
    file_layer,
    highest_value,
    items_layer,
    resolve,
)
from core.config.presets import preset_layer, preset_names
from core.config.schema import Config
from core.errors import UsageError
from core.models.specs import SPECS, get_spec


def resolve_layers(*layers: Layer) -> Config:
    return resolve(layers, lambda name: get_spec(name).config_defaults()).config


def test_defaults_are_the_row_of_the_default_model() -> None:
    config = resolve_layers()
    assert config.model.name == "dela-detr"
    assert (config.model.num_queries, config.label_augmentation.repeat_time, config.postprocess.nms) == (300, 2, True)


@pytest.mark.parametrize("name", SPECS)
def test_every_model_brings_its_own_settings(name: str) -> None:
    config = resolve_layers(assignments_layer([f"model.name={name}"]))
    spec = SPECS[name]
    assert config.model.num_queries == spec.num_queries
    assert config.schedule.epochs == spec.epochs
    assert config.loss.class_cost == config.loss.class_weight == (2.0 if "cond" in name else 1.0)


def test_the_higher_layer_wins_and_its_origin_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer:\n  lr: 1e-3\n  weight_decay: 0\nschedule: {epochs: 7}\n")
    layers = [
        preset_layer("small"),
        file_layer(file),
        environment_layer({"DEDETR_SCHEDULE__EPOCHS": "8", "DEDETR_OPTIMIZER__LR": "2e-3", "OTHER": "1"}),
        assignments_layer(["optimizer.lr=3e-3"]),
        items_layer({("optimizer", "lr"): 4e-3}, {("optimizer", "lr"): "--lr"}, "flag"),
    ]
    resolved = resolve(layers, lambda name: get_spec(name).config_defaults())
    assert resolved.config.optimizer.lr == 4e-3
    assert resolved.config.optimizer.weight_decay == 0
    assert resolved.config.schedule.epochs == 8
    assert resolved.config.data.short_side == 224
    assert resolved.origins[("optimizer", "lr")] == "--lr"
    assert resolved.origins[("schedule", "epochs")] == "DEDETR_SCHEDULE__EPOCHS"
    assert resolved.origins[("optimizer", "weight_decay")] == f"{file}:3"
    assert resolved.origins[("data", "short_side")] == "preset small"


def test_repeat_ratio_takes_the_place_of_the_models_repeat_time() -> None:
    config = resolve_layers(assignments_layer(["label_augmentation.repeat_ratio=0.25"]))
    assert (config.label_augmentation.repeat_time, config.label_augmentation.repeat_ratio) == (None, 0.25)
    both = ["label_augmentation.repeat_ratio=0.25", "label_augmentation.repeat_time=3"]
    with pytest.raises(UsageError, match="exclude each other"):
        resolve_layers(assignments_layer(both))


@pytest.mark.parametrize("name", preset_names())
def test_presets_resolve_for_every_model(name: str) -> None:
    for model in SPECS:
        resolve_layers(preset_layer(name), assignments_layer([f"model.name={model}"]))


@pytest.mark.parametrize(
    ("assignment", "message", "hint"),
    [
        pytest.param("optimizer.lrr=3", "unknown key 'optimizer.lrr'", "did you mean 'lr'?", id="F75-key"),
        pytest.param("model.name=dela-der", "unknown model 'dela-der'", "did you mean 'dela-detr'?", id="F75-model"),
        pytest.param("optimizer.lr=-1", "greater than 0", None, id="F76-negative"),
        pytest.param("schedule.epochs=ten", "valid integer", None, id="F76-type"),
        pytest.param("optimizer.lr=.nan", "finite number", None, id="F76-nan"),
        pytest.param("data.short_side=2000", "max_long_side 1333 is less than short_side 2000", None, id="sides"),
        pytest.param("model.hidden_dim=30", "divisible", None, id="heads"),
        pytest.param("model=3", "ModelConfig", None, id="section"),
        pytest.param("nonsense", "section.key=value", None, id="no-equals"),
        pytest.param("a.b=[1", "cannot read", None, id="F77-value"),
    ],
)
def test_bad_values_are_usage_errors(assignment: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_layers(assignments_layer([assignment]))
    assert message in str(caught.value)
    assert hint is None or caught.value.hint == hint


def test_all_errors_are_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("optimizer:\n  lr: -1\nschedule:\n  epochs: ten\n")
    with pytest.raises(UsageError) as caught:
        resolve_layers(file_layer(file))
    assert f"{file}:2" in str(caught.value)
    assert f"{file}:4" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "empty", id="F77-empty"),
        pytest.param("optimizer:\n\tlr: 1\n", "not valid YAML", id="F77-tab"),
        pytest.param("run: {seed: 1}\nrun: {seed: 2}\n", "stands twice", id="F77-twice"),
        pytest.param("- 1\n", "top level", id="list"),
        pytest.param("run: !!python/object/apply:os.system ['touch pwned']\n", "not valid YAML", id="F34-object"),
        pytest.param("run: {seed: 1\n", "not valid YAML", id="cut"),
    ],
)
def test_bad_files_are_usage_errors(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        resolve_layers(file_layer(file))
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(file))
    assert not (tmp_path / "pwned").exists()


def test_a_missing_file_and_an_unknown_preset_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        file_layer(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="unknown preset 'dem'") as caught:
        preset_layer("dem")
    assert caught.value.hint == "did you mean 'demo'?"


ALIASES = "[&a [x,x,x,x,x,x,x,x,x,x]" + "".join(
    f", &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in zip("abcdef", "bcdefg", strict=True)
)
"""A million values."""
UNUSUAL = {
    "!!int ''": "not what its tag",
    "!!float ''": "not what its tag",
    "!!bool maybe": "not what its tag",
    "!!timestamp x": "not what its tag",
    "1:" * 200 + "1.5": "not what its tag",
    "2001-99-99": "month must be in",
    "0x" + "f" * 4000: "more than 64 bits",
    f"{ALIASES}]": "more than 10000 values",
    "[" * 3000: "nested too deeply",
    "&a [*a]": "more than 10000 values|recursive",
    f"[{'x, ' * 5000}]": r"\.\.\.\)$",
}
"""Values that PyYAML stumbles over, or makes more of than can be handled or shown."""


@pytest.mark.parametrize(("value", "message"), UNUSUAL.items(), ids=lambda value: value[:16])
def test_unusual_values_are_usage_errors(value: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(f"run:\n  device: {value}\n")
    for layer, where in (
        (lambda: assignments_layer([f"run.device={value}"]), "--set run.device"),
        (lambda: environment_layer({"DEDETR_RUN__DEVICE": value}), "DEDETR_RUN__DEVICE"),
        (lambda: file_layer(file), str(file)),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            resolve_layers(layer())
        assert str(caught.value.where).startswith(where)
        assert len(caught.value.message) < 400


@pytest.mark.parametrize("value", ["&a {b: *a}", "{a: &a {x: 1}, b: &b {x: *a, y: *a}}"])
def test_sections_within_themselves_are_usage_errors(value: str) -> None:
    with pytest.raises(UsageError):
        resolve_layers(assignments_layer([f"run={value}"]))


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with contextlib.suppress(UsageError):
        resolve_layers(file_layer(file))


@given(st.text(max_size=60))
def test_any_assignment_is_a_configuration_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        resolve_layers(assignments_layer([text]))


def test_a_backbone_from_scratch_trains_whole_unless_told_otherwise() -> None:
    pretrained = resolve_layers(assignments_layer([])).backbone
    assert (pretrained.norm, pretrained.freeze_stem) == ("frozen_batch_norm", True)
    scratch = resolve_layers(assignments_layer(["backbone.weights=null"])).backbone
    assert (scratch.norm, scratch.freeze_stem) == ("batch_norm", False)
    grouped = resolve_layers(assignments_layer(["backbone.weights=null", "backbone.norm=group_norm"])).backbone
    assert (grouped.norm, grouped.freeze_stem) == ("group_norm", False)


def test_a_drop_or_a_length_takes_the_place_of_what_lower_layers_say_of_it() -> None:
    by_step = assignments_layer(["schedule.lr_drop_step=9", "schedule.steps=20"])
    schedule = resolve_layers(by_step).schedule
    assert (schedule.lr_drop_epoch, schedule.lr_drop_step, schedule.steps) == (None, 9, 20)
    flags = {("schedule", "lr_drop_epoch"): 3, ("schedule", "epochs"): 5}
    schedule = resolve_layers(by_step, items_layer(flags, {}, "flag")).schedule
    assert (schedule.lr_drop_epoch, schedule.lr_drop_step) == (3, None)
    assert (schedule.epochs, schedule.steps) == (5, None)
    # In one layer, such as a run's own config.yaml, both are as they stand there.
    whole = resolve_layers(Layer(Config().model_dump() | {"schedule": {"epochs": 5, "steps": 20}}, "config.yaml"))
    assert (whole.schedule.epochs, whole.schedule.steps) == (5, 20)


def test_every_setting_has_an_origin() -> None:
    layers = [preset_layer("demo"), assignments_layer(["label_augmentation.repeat_ratio=0.5"])]
    resolved = resolve(layers, lambda name: get_spec(name).config_defaults())
    settings = {".".join(setting.path): setting for setting in resolved.settings()}
    assert len(settings) == sum(len(section) for section in Config().model_dump().values())
    assert (settings["model.num_queries"].value, settings["model.num_queries"].origin) == (30, "preset demo")
    assert settings["postprocess.nms"].origin == "model dela-detr"
    assert settings["loss.l1_weight"].origin == "default"
    assert settings["backbone.norm"].origin == "default, as backbone.weights is null"
    assert settings["label_augmentation.repeat_time"].value is None
    assert settings["label_augmentation.repeat_time"].origin == "--set label_augmentation.repeat_ratio"


def test_the_highest_value_is_known_before_it_is_checked() -> None:
    path = ("data", "root")
    assert highest_value([], path) == "data"
    layers = [assignments_layer(["data.root=mine", "run.seed=-1"]), assignments_layer(["data.short_side=64"])]
    assert highest_value(layers, path) == "mine"


def test_an_error_of_several_values_names_where_each_of_them_stands() -> None:
    sides = {("data", "short_side"): 500, ("data", "batch_size"): 3}
    flags = items_layer(sides, {path: f"--{path[1]}" for path in sides}, "flag")
    with pytest.raises(UsageError) as caught:
        resolve_layers(assignments_layer(["data.max_long_side=400"]), flags)
    assert caught.value.where == "--set data.max_long_side, --short_side"
    with pytest.raises(UsageError) as caught:
        resolve_layers(assignments_layer(["run.loggers=[wandb, mlflow]"]))
    assert caught.value.where == "--set run.loggers"
