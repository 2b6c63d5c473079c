"""Whether a run may go on: same model, same classes, same data, same settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from core.annotations.records import Category
from core.config.schema import Config
from core.errors import CheckpointError, UsageError
from core.models.weights import LoadedWeights
from core.trainer.run_folder import DatasetIdentity

_WITHOUT_EFFECT = {
    "run.device", "run.evaluator", "run.checkpoint_every", "run.checkpoint_minutes", "run.checkpoint_share",
    "run.background_saves", "run.keep_checkpoints", "run.loggers", "run.num_logged_images", "data.num_workers",
    "data.root", "data.cache",
}  # fmt: skip
"""May change: no weight depends on them (what stands in `data.root` is told by its hashes)."""
_ARCHITECTURE = ("model.", "backbone.")
_NOT_ARCHITECTURE = {"backbone.weights", "model.attention", "model.roi_backend"}


def check_same_run(saved: LoadedWeights, config: Config, classes: Sequence[Category], *, override: bool) -> None:
    """Check that a checkpoint belongs to a run of this configuration and these classes.

    Args:
        saved: the checkpoint's `model.pt`.
        config: of the run that wants to go on.
        classes: of the run that wants to go on.
        override: let settings differ that do not change the model.

    Raises:
        CheckpointError: the model or the classes differ; with the differences.
        UsageError: other settings differ; with their names.
    """
    try:
        saved_config = Config.model_validate(saved.config)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        raise CheckpointError(f"the checkpoint's configuration is not understood: {key}: {detail['msg']}") from error
    differing = _differences(saved_config, config)
    of_model = [key for key in differing if key.startswith(_ARCHITECTURE) and key not in _NOT_ARCHITECTURE]
    changes = [differing[key] for key in of_model] + _class_differences(saved.classes or (), classes)
    if changes:
        raise CheckpointError(
            f"the checkpoint holds another model: {'; '.join(changes)}",
            where="--resume",
            hint="start a new run with --weights, or resume with the settings of the run's config.yaml",
        )
    others = [differing[key] for key in differing if key not in _WITHOUT_EFFECT]
    if others and not override:
        raise UsageError(
            f"the run was started with other settings: {'; '.join(others)}",
            where="--resume",
            hint="leave them out, or insist with --override",
        )


def check_same_data(manifest: Mapping[str, Any] | None, dataset: DatasetIdentity, *, override: bool) -> None:
    """Check that a run goes on with the data that it was started with.

    Raises:
        UsageError: an annotation file is another one, or a split has come or gone. A manifest that cannot be read
            tells nothing.
    """
    saved = ((manifest or {}).get("dataset") or {}).get("sha256") or {}
    splits = saved.keys() | dataset.sha256.keys() if saved else ()
    changed = sorted(split for split in splits if saved.get(split) != dataset.sha256.get(split))
    if changed and not override:
        raise UsageError(
            f"the annotations of {' and '.join(changed)} are not those that the run was started with",
            where=dataset.name,
            hint="resume with the data of the run, or insist with --override",
        )


def _differences(saved: Config, ours: Config) -> dict[str, str]:
    before, now = _flat(saved.model_dump()), _flat(ours.model_dump())
    return {key: f"{key} was {before[key]}, now {now[key]}" for key in now if before[key] != now[key]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _class_differences(saved: Sequence[Category], ours: Sequence[Category]) -> list[str]:
    before = [f"{category.id} {category.name}" for category in saved]
    now = [f"{category.id} {category.name}" for category in ours]
    if before == now:
        return []
    missing = [text for text in before if text not in now]
    added = [text for text in now if text not in before]
    if not missing and not added:
        return ["the classes have another order"]
    return [f"classes missing here: {', '.join(missing) or 'none'}; new here: {', '.join(added) or 'none'}"]
