"""A step that could not be made, made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.configuration import Flags
from core.config.layers import Layer, assignments_layer, items_layer, resolve_over
from core.config.schema import Config
from core.errors import MachineError, UsageError

if TYPE_CHECKING:
    from core.trainer.replay_report import ReplayReport

_CHANGEABLE = ("run.device", "run.precision", "run.compile", "model.attention", "model.roi_backend")
"""How the step is computed; everything else says what it is."""


def replay(file: Path, *, flags: Flags | None = None, assignments: Sequence[str] = ()) -> ReplayReport:
    """Make a step again that came to numbers that are not finite; nothing but its file is read, and nothing written.

    Args:
        file: what training left in `diverged/` of its run folder.
        flags: settings by key path, with the flag's name; of those that do not change the step.
        assignments: `section.key=value`, likewise.

    Returns:
        What was found; its `error()` is None if all numbers were finite this time.

    Raises:
        CheckpointError: the file is missing, damaged, of another version, or of another kind.
        UsageError: a setting cannot be used, or would change the step.
        MachineError: the device cannot do it.
    """
    from core.device import choose_device
    from core.trainer.diverged import read_diverged_step
    from core.trainer.failures import out_of_memory_errors
    from core.trainer.replay import replay as make_again

    kept = read_diverged_step(file)
    config = _changed(kept.config, flags or {}, assignments)
    device = choose_device(config.run.device)
    try:
        with out_of_memory_errors(config.data):
            return make_again(kept, config, device)
    except MachineError as error:
        if "out of memory" in error.message:
            error.hint = "--device cpu may have more"
        raise


def _changed(config: Config, flags: Flags, assignments: Sequence[str]) -> Config:
    """Return the configuration of a step, computed in another way."""
    values = {path: value for path, (_, value) in flags.items()}
    flag_layer = items_layer(values, {path: flag for path, (flag, _) in flags.items()}, "flag")
    layers = [assignments_layer(assignments), flag_layer]
    changed = resolve_over(config, layers, fixed=(), changeable=())
    for layer in layers:
        _require_changeable(layer)
    return changed


def _require_changeable(layer: Layer) -> None:
    for path, origin in layer.origins.items():
        if ".".join(path) not in _CHANGEABLE:
            hint = f"a replay can change {', '.join(_CHANGEABLE)}"
            raise UsageError(f"'{'.'.join(path)}' is fixed by the step", where=origin, hint=hint)
