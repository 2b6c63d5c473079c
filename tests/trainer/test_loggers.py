"""Loggers: real event files and real offline runs; one that fails is dropped, and the run goes on."""

from __future__ import annotations

import inspect
import io
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from core.config.schema import DataConfig
from core.datasets.dataset import DetectionDataset
from core.evaluation.coco import STAT_NAMES
from core.structures import Detections
from core.trainer.loggers import LoggingReporter, open_writers, require_loggers
from core.trainer.loggers.pictures import draw_logged_images
from core.trainer.reporter import CombinedReporter, NullReporter, Reporter
from tests.datasets.scenes import CLASSES, COLORS, eval_transform, make_scene
from tests.trainer.logged_run import RUN_ID, drawn, evaluated, logged_run, step_done

ROOT = Path(__file__).parents[2]


def read_events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def values_of(events: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


class MemoryWriter:
    """Keeps what it is given; raises at the step named."""

    def __init__(self, raise_at: int = -1) -> None:
        self.raise_at = raise_at
        self.scalars_by_step: dict[int, dict[str, float]] = {}
        self.images: list[tuple[int, str]] = []
        self.num_closed = 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.raise_at:
            raise OSError(28, "No space left on device\nand more")
        self.scalars_by_step[step] = {**self.scalars_by_step.get(step, {}), **values}

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        self.images.append((step, name))

    def close(self) -> None:
        self.num_closed += 1
        if self.raise_at >= 0:
            raise OSError("gone")


def test_tensorboard_shows_what_happened(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    writers = open_writers(["tensorboard", "tensorboard"], logged_run(tmp_path), pytest.fail)
    reporter = LoggingReporter(writers, log_every=2, warn=pytest.fail)
    for step, loss in enumerate([1.0, 2.0, 4.0, 6.0, 8.0], start=1):
        reporter.step_done(step_done(step, loss))
    reporter.evaluated(
        evaluated(5, {name: None if name == "APs" else index / 16 for index, name in enumerate(STAT_NAMES)})
    )
    reporter.predictions_drawn(drawn(5))
    reporter.close()
    events = read_events(tmp_path)
    assert values_of(events, "train/loss") == [(2, 1.5), (4, 5.0), (5, 8.0)]
    assert values_of(events, "train/terms/loss_ce") == [(2, 3.0), (4, 10.0), (5, 16.0)]
    for name, value in (("lr", 1e-4), ("grad_norm", 3.0), ("images_per_second", 7.0), ("data_wait_share", 0.25)):
        assert values_of(events, f"train/{name}") == [(step, pytest.approx(value)) for step in (2, 4, 5)]
    validation = {name for name in events.Tags()["scalars"] if name.startswith("val/")}
    assert validation == {f"val/{name}" for name in STAT_NAMES if name != "APs"} | {"val/epoch"}
    assert values_of(events, "val/ARl") == [(5, 11 / 16)]
    (event,) = events.Images("predictions/7_cat")
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        assert (event.step, picture.size, picture.getpixel((3, 3))) == (5, (40, 20), (255, 0, 0))


def test_tensorboard_hides_the_steps_that_a_resumed_run_makes_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for first_step, last_step, loss in ((0, 6, 1.0), (4, 5, 2.0)):
        writers = open_writers(["tensorboard"], logged_run(tmp_path, first_step), pytest.fail)
        reporter = LoggingReporter(writers, log_every=1, warn=pytest.fail)
        for step in range(first_step + 1, last_step + 1):
            reporter.step_done(step_done(step, loss, num_steps=9))
        reporter.close()
    assert values_of(read_events(tmp_path), "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]


def test_a_writer_that_raises_is_dropped_and_the_rest_goes_on() -> None:
    broken, sound = MemoryWriter(raise_at=2), MemoryWriter()
    warnings: list[str] = []
    reporter = LoggingReporter({"broken": broken, "sound": sound}, log_every=1, warn=warnings.append)
    for step in range(1, 5):
        reporter.step_done(step_done(step, 1.0))
    reporter.evaluated(evaluated(4, {"AP": 0.5}))
    reporter.predictions_drawn(drawn(4))
    assert reporter.wants_pictures
    reporter.close()
    reporter.close()
    assert len(warnings) == 1
    assert warnings[0].startswith("broken failed, the run goes on without it: OSError")
    assert "\n" not in warnings[0]
    assert list(broken.scalars_by_step) == [1]
    assert list(sound.scalars_by_step) == [1, 2, 3, 4]
    assert sound.images == [(4, "predictions/7_cat")]
    assert (broken.num_closed, sound.num_closed) == (1, 1)
    assert not reporter.wants_pictures


def test_numbers_that_are_not_finite_are_left_out() -> None:
    writer = MemoryWriter()
    reporter = LoggingReporter({"memory": writer}, log_every=2, warn=pytest.fail)
    reporter.step_done(step_done(1, math.inf))
    reporter.step_done(step_done(2, 1.0))
    assert "train/loss" not in writer.scalars_by_step[2]
    assert writer.scalars_by_step[2]["train/grad_norm"] == 3.0


def test_without_writers_no_pictures_are_wanted() -> None:
    assert not LoggingReporter({}, log_every=1, warn=pytest.fail).wants_pictures


def test_every_event_reaches_every_reporter() -> None:
    calls: list[tuple[str, str, Any]] = []

    def make(label: str) -> Reporter:
        def told(name: str) -> Any:
            return lambda _self, *event: calls.append((label, name, event))

        return type("Told", (NullReporter,), {name: told(name) for name in methods})()

    methods = [name for name, _ in inspect.getmembers(NullReporter, inspect.isfunction)]
    assert set(methods) == {name for name, _ in inspect.getmembers(Reporter, inspect.isfunction) if name[0] != "_"}
    combined = CombinedReporter([make("a"), make("b")])
    for name in methods:
        method = getattr(combined, name)
        event = tuple(object() for _ in inspect.signature(method).parameters)
        method(*event)
        assert calls[-2:] == [("a", name, event), ("b", name, event)]
    assert len(calls) == 2 * len(methods)
    assert not combined.wants_pictures
    wanting = LoggingReporter({"memory": MemoryWriter()}, log_every=1, warn=pytest.fail)
    assert CombinedReporter([NullReporter(), wanting]).wants_pictures


def log_in_a_process(
    folder: Path, *arguments: str, before: str = "", stdin: int = subprocess.DEVNULL, **env: str
) -> list[str]:
    """Log a run with nothing of the user's wandb; return all that is printed on stdout, which are its warnings.

    Args:
        folder: the run is in `run` below it.
        arguments: of `tests.trainer.logged_run`.
        before: code that is run before.
        stdin: its file descriptor.
        env: more variables.
    """
    home = folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own = {f"WANDB_{kind}_DIR": str(folder / "caches" / kind) for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{before}\nfrom tests.trainer.logged_run import main; main()",
            str(folder / "run"),
            *arguments,
        ],
        cwd=ROOT,
        env={**kept, **own, "HOME": str(home), "NETRC": str(home / "none"), "WANDB_ERROR_REPORTING": "false", **env},
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
    return process.stdout.splitlines()


def only_offline_run(folder: Path) -> Path:
    """Return the folder that wandb made, after a look at what is in it."""
    (found,) = (folder / "run" / "wandb").glob(f"offline-run-*-{RUN_ID}")
    content = (found / f"run-{RUN_ID}.wandb").read_bytes()
    assert b"train/terms/loss_ce" in content
    return found


@pytest.fixture
def make_run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def test_wandb_offline(make_run: Path) -> None:
    pytest.importorskip("wandb")
    assert log_in_a_process(make_run, "wandb", WANDB_MODE="offline") == []
    found = only_offline_run(make_run)
    content = (found / f"run-{RUN_ID}.wandb").read_bytes()
    for word in (b"val/AP50", b"dedetr", b"seed"):
        assert word in content
    assert b"val/APs" not in content
    (picture,) = found.glob("files/media/images/predictions/7_cat_*.png")
    with Image.open(picture) as opened:
        assert opened.size == (40, 20)


def test_wandb_without_a_key_is_used_offline_and_never_asks(make_run: Path) -> None:
    pytest.importorskip("wandb")
    pty = pytest.importorskip("pty")
    terminal, stdin = pty.openpty()
    # With terminals on both sides wandb would ask, and this would time out.
    before = "import sys; sys.stderr.isatty = lambda: True"
    try:
        # A run that is not closed is one that wandb's service has more to say of, and stdout is not the place.
        warnings = log_in_a_process(make_run, "wandb", "--leave-open", before=before, stdin=stdin, TERM="xterm")
    finally:
        os.close(stdin)
        os.close(terminal)
    assert len(warnings) == 1
    assert warnings[0].startswith("wandb is used offline, `wandb sync` sends the run later: UsageError")
    only_offline_run(make_run)


@pytest.mark.slow  # wandb takes ten seconds to give up
def test_wandb_whose_server_does_not_answer_is_used_offline(make_run: Path) -> None:
    pytest.importorskip("wandb")
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1"}
    warnings = log_in_a_process(make_run, "wandb", **server)
    assert len(warnings) == 1
    assert "CommError" in warnings[0]
    only_offline_run(make_run)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process of wandb in /proc")
def test_wandb_whose_process_dies_is_dropped(make_run: Path) -> None:
    pytest.importorskip("wandb")
    warnings = log_in_a_process(make_run, "wandb", "--kill-wandb-before", "3", WANDB_MODE="offline")
    assert len(warnings) == 1
    assert warnings[0].startswith("wandb failed, the run goes on without it: ")


def test_tensorboard_on_a_full_disk_is_dropped(make_run: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("resource")
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    warnings = log_in_a_process(make_run, "tensorboard", "--num-steps", "200", before=before)
    assert len(warnings) == 1
    assert warnings[0].startswith("tensorboard failed, the run goes on without it: OSError")


def test_a_logger_that_cannot_be_opened_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file in its way")
    warnings: list[str] = []
    assert open_writers(["tensorboard"], logged_run(tmp_path), warnings.append) == {}
    assert len(warnings) == 1
    assert warnings[0].startswith("tensorboard cannot be used, the run goes on without it: ")


def test_packages_are_there() -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    require_loggers([])
    require_loggers(["tensorboard", "wandb"])


def test_missing_packages_are_named() -> None:
    script = """
import sys
from core.errors import MachineError
from core.trainer.loggers import require_loggers
for name in ("tensorboard", "wandb"):
    sys.modules[name] = None
    try:
        require_loggers([name])
    except MachineError as error:
        print(error.exit_code, error, error.hint, sep="|")
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == [
        f"5|run.loggers: {name} is not installed|python -m pip install 'dedetr[{name}]'"
        for name in ("tensorboard", "wandb")
    ]


def make_dataset(folder: Path, num_images: int = 6, size: tuple[int, int] | None = None) -> DetectionDataset:
    scenes = make_scene(folder, num_images, size=size)
    return DetectionDataset(scenes, folder, CLASSES, eval_transform(DataConfig()), seed=0, drop_crowds=False)


def found_in(dataset: DetectionDataset, score: float) -> dict[int, Detections]:
    """Detect in every image one green box of ten by ten pixels, and another of low score."""
    boxes_xyxy_px = torch.tensor([[10.0, 20.0, 30.0, 40.0], [1.0, 1.0, 9.0, 9.0]])
    detections = Detections(boxes_xyxy_px, torch.tensor([score, 0.1]), torch.tensor([1, 2]))
    return {image.id: detections for image in dataset.images}


NAMES = [category.name for category in CLASSES]


def test_logged_images_are_the_same_few_each_time(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    found = found_in(dataset, 0.9)
    pictures = draw_logged_images(dataset, found, NAMES, 3)
    assert [name for name, _ in pictures] == ["100_000100", "102_000102", "104_000104"]
    again = draw_logged_images(dataset, found, NAMES, 3)
    assert [picture.tobytes() for _, picture in again] == [picture.tobytes() for _, picture in pictures]
    assert len(draw_logged_images(dataset, found, NAMES, 99)) == 6
    assert draw_logged_images(dataset, found, NAMES, 0) == []


def test_logged_images_have_truth_at_the_left_and_sure_detections_at_the_right(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 3, size=(80, 80))
    # The third image has no boxes, so that all that differs between its halves was detected.
    pictures = dict(draw_logged_images(dataset, found_in(dataset, 0.9), NAMES, 3))
    halves = pictures["102_000102"]
    side = 400
    header, gap = halves.height - side, halves.width - 2 * side
    left = halves.crop((0, header, side, header + side))
    right = halves.crop((side + gap, header, halves.width, header + side))
    assert left.getbbox() is None
    box = right.getbbox()
    assert box is not None
    assert box[0] == pytest.approx(50, abs=3)
    assert box[3] == pytest.approx(200, abs=3)
    unsure = dict(draw_logged_images(dataset, found_in(dataset, 0.29), NAMES, 3))["102_000102"]
    assert unsure.crop((side + gap, header, halves.width, header + side)).getbbox() is None
    # The first image has coloured rectangles, and outlines of its own round them.
    first = pictures["100_000100"].crop((0, header, side, header + side))
    colors = {color for _, color in first.getcolors(1 << 20) or []}
    assert colors & set(COLORS)
    assert first.tobytes() != Image.open(tmp_path / "000100.png").resize((side, side)).tobytes()


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 1, size=(1600, 800))
    ((_, picture),) = draw_logged_images(dataset, found_in(dataset, 0.9), NAMES, 1)
    assert 1600 < picture.width < 1640
    assert 400 < picture.height < 450
