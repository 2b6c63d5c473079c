"""What becomes of a run when it is killed, spoilt, short of memory, or one of several processes: faults F40 to F69.

    python -m benchmarks.fault_messages [F40 F65 ...]      (after the faults of data)

Every row does one thing to a real command, its processes or its files, and shows what was said and how it ended. It
stops where a traceback is seen. What needs Linux, or its superuser, is said to be missing elsewhere. Prints Markdown.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.annotations.conftest import make_coco_layout, write_json
from tests.faults.running import GO_ON, NEWEST, SHORT, Runs, children, replace, under_way
from tests.faults.test_checkpoints import _WITHOUT_POWER, cut_off, damage, flip_a_bit
from tests.faults.test_numbers import _LITTLE_MEMORY, FAR, LARGE
from tests.faults.test_processes import busy_port
from tests.trainer.comparison import assert_same_run
from tests.trainer.test_many_processes import process_of_rank

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


class Place(Runs):
    """A folder with a small source in `coco` and a run of two epochs in `run`; commands are processes of their own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _typed)
        self.code = 0
        self.said = ""

    def dedetr(
        self, *words: object, prefix: Sequence[str] = (), program: Sequence[str] = ("-m", "dedetr_cli"), **env: str
    ) -> Place:
        """Type a command, and remember how it ended."""
        self.code, out, err = _typed(*words, cwd=self.folder, prefix=prefix, program=program, **env)
        self.said = err + out
        return self

    def ended(self, process: subprocess.Popen[str]) -> Place:
        """Wait for a process, and remember how it ended."""
        _, self.said = process.communicate(timeout=200)
        self.code = process.returncode
        return self


def _typed(
    *words: object, cwd: Path, prefix: Sequence[str] = (), program: Sequence[str] = ("-m", "dedetr_cli"), **env: str
) -> tuple[int, str, str]:
    done = subprocess.run(
        [*prefix, sys.executable, *program, *map(str, words)],
        cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"} | env, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


Act = Callable[[Place], Any]
"""Does something to a process; what it returns is shown in place of the exit code, unless it is a place."""


def rows() -> list[tuple[str, str, Act, str | None]]:
    """Return all rows: the fault, what is done, the function that does it, and how the line to show is known.

    None: it is the error.
    """
    return [
        ("F40", "SIGKILL in training, then `train --resume`", killed, "from step"),
        ("F41", "SIGTERM in training", lambda p: signalled(p, signal.SIGTERM), None),
        ("F41", "SIGUSR1 in training", lambda p: signalled(p, signal.SIGUSR1), None),
        ("F41", "SIGTERM in an evaluation", stopped_in_evaluation, None),
        ("F42", "SIGTERM, and again while the step is made", lambda p: signalled(p, signal.SIGTERM, again=True), None),
        ("F43", "SIGTERM to one of two processes", stopped_in_one, None),
        ("F44", "newest `model.pt` cut off, then `train --resume`", lambda p: damaged(p, cut_off), "is damaged"),
        ("F44", "one bit of it flipped, likewise", lambda p: damaged(p, flip_a_bit), "is damaged"),
        ("F45", "a bit flipped in all checkpoints, likewise", all_damaged, None),
        ("F46", "leftovers of a save (`step-00000009.tmp`), likewise", leftovers, "from step"),
        ("F47", "steps 99999998 and 100000000, likewise", large_steps, "from step"),
        ("F48", "checkpoints made read-only while training, SIGTERM", read_only, None),
        ("F49", "`train --resume --model detr`", lambda p: p.dedetr(*GO_ON, "--model", "detr"), None),
        ("F49", "`train --resume`, a class renamed in the data", other_classes, None),
        ("F49", "`train --resume --lr 1e-5`", lambda p: p.dedetr(*without_override(), "--lr", "1e-5"), None),
        ("F49", "the same with `--override`", lambda p: p.dedetr(*GO_ON, "--lr", "1e-5"), "from step"),
        ("F50", "`train --weights run` on data with other classes", fine_tuned, "classes kept"),
        ("F51", "`train --weights run --model conddetr`", other_decoder, None),
        ("F52", "`train --out run`, where a run is", lambda p: p.dedetr("train", *SHORT, "--out", "run"), None),
        ("F53", "`train --resume` while the run goes on", second_run, None),
        ("F54", "`train --resume`, a checkpoint of a newer format", newer_format, None),
        ("F55", "`--resume --workers 2`, a run of 0 workers", lambda p: compared(p, "--workers", "2"), "from step"),
        ("F55", "`--resume --nproc 2`, a run of 1 (no augmentation, frozen norm)", more_processes, "from step"),
        ("F56", "`--set loss.class_weight=3e38`", lambda p: p.dedetr(*GO_ON, "--set", "loss.class_weight=3e38"), None),
        ("F57", "`--lr 1e30`", lambda p: p.dedetr(*GO_ON, *FAR, "--lr", "1e30"), None),
        ("F58", "`--precision float16 --set loss.class_weight=1e34`", overflow, None),
        ("F59", "images of 2000 pixels, 300 MB left (RLIMIT_AS)", no_memory, None),
        ("F60", "`predict --threshold 1`: nothing is found", nothing_found, "detections"),
        ("F61", "a val split without boxes", no_val_boxes, "nothing to measure"),
        ("F62", "one val image, `eval` in 1 and 3 processes", few_images, None),
        ("F63", "SIGKILL to one of two processes", lambda p: lost_process(p), None),
        ("F63", "an image spoilt while two processes train", spoilt_image, None),
        ("F64", "`train --nproc 2` with an image missing: tried once", user_error, None),
        ("F65", "SIGKILL to a data worker", lambda p: killed_worker(p), None),
        ("F65", "the same in one of two, the other waiting", lambda p: killed_worker(p, num_processes=2), None),
        ("F65", "`/dev/shm` of 96 kB", lambda p: small_shm(p, 0), None),
        ("F65", "8 kB of it left", lambda p: small_shm(p, 88), None),
        ("F66", "`torchrun --master-port` that is taken", torchrun_port, "EADDRINUSE"),
        ("F66", "the same without torchrun, first process", lambda p: busy(p, "0"), None),
        ("F67", "`train --nproc 4000 --batch-size 4000`", lambda p: too_many(p, "4000", "4000"), None),
        ("F67", "`train --nproc 3` for batches of two images", lambda p: too_many(p, "3", "2"), None),
        ("F68", "`eval` with Slurm's and half of torchrun's variables", foreign_variables, "scored by"),
        ("F68", "`eval` as rank 7 of 2", lambda p: p.dedetr("eval", "--checkpoint", "run", **as_rank("7")), None),
        ("F68", "`train --nproc 2` under torchrun", nproc_in_torchrun, None),
        ("F69", "`train` in 1 and 2 processes (likewise): loss of the first step", same_batches, None),
    ]  # fmt: skip


# What is done, in the order of the rows


def killed(place: Place) -> str:
    run, whole = place.folder / "new", place.folder / "whole"
    flags = ["--set", "run.checkpoint_share=1.0", "--set", "run.checkpoint_every=1", "--set", "run.eval_every=1000"]
    with under_way(run, *flags, cwd=place.folder) as process:
        while not list(run.glob("checkpoints/step-*/manifest.json")):
            time.sleep(0.01)
        process.kill()
        process.wait()
    first = process.returncode
    length = ["--override", "--epochs", "12"]
    place.dedetr("train", "--resume", *length, "--out", "new")
    resumed, code = place.said, place.code
    place.dedetr("train", *SHORT, "--epochs", "12", *flags, "--out", "whole")
    for each in (run, whole):
        keep_newest(each)
    assert_same_run(run, whole)
    place.said = resumed.replace("-> new", "-> new; it ends with the bits of a run that was not killed")
    return f"{first}, then {code}"


def keep_newest(run: Path) -> None:
    for folder in sorted(run.glob("checkpoints/step-*"))[:-1]:
        shutil.rmtree(folder)


def signalled(place: Place, number: signal.Signals, *, again: bool = False) -> Place:
    large = ["--short-side", "640", "--set", "data.max_long_side=1000"] if again else []
    with under_way(place.folder / "new", *large, cwd=place.folder) as process:
        process.send_signal(number)
        if again:
            time.sleep(0.3)
            process.send_signal(number)
        return place.ended(process)


def stopped_in_evaluation(place: Place) -> Place:
    """Each image is there many times, so that there is something to interrupt."""
    path = place.folder / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    images = content["images"]
    for number in range(1, 200):
        for image in images[:3]:
            name = f"{number}-{image['file_name']}"
            os.link(path.parents[1] / "val2017" / image["file_name"], path.parents[1] / "val2017" / name)
            content["images"].append(image | {"id": image["id"] + 1000 * number, "file_name": name})
    write_json(path, content)
    command = [sys.executable, "-m", "dedetr_cli", "eval", "--checkpoint", "run", "--set", "data.num_workers=0"]
    with subprocess.Popen(
        command, cwd=place.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        while "evaluating" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        return place.ended(process)


def stopped_in_one(place: Place) -> Place:
    with under_way(place.folder / "new", "--nproc", "2", cwd=place.folder) as process:
        os.kill(process_of_rank(1, process.pid), signal.SIGTERM)
        return place.ended(process)


def damaged(place: Place, change: Callable[[bytes], bytes]) -> Place:
    damage(place.folder / NEWEST / "model.pt", change)
    return place.dedetr(*GO_ON)


def all_damaged(place: Place) -> Place:
    for folder in (place.folder / "run/checkpoints").glob("step-*"):
        damage(folder / "model.pt")
    return place.dedetr(*GO_ON)


def leftovers(place: Place) -> Place:
    shutil.copytree(place.folder / NEWEST, place.folder / "run/checkpoints/step-00000009.tmp")
    place.dedetr(*GO_ON)
    assert not list(place.folder.rglob("*.tmp"))
    return place


def large_steps(place: Place) -> Place:
    checkpoints = place.folder / "run/checkpoints"
    (checkpoints / "step-00000002").rename(checkpoints / "step-99999998")
    (checkpoints / "step-00000004").rename(checkpoints / "step-100000000")
    return place.dedetr(*GO_ON)


def read_only(place: Place) -> Place:
    checkpoints = place.folder / "new/checkpoints"
    prefix = _WITHOUT_POWER if os.geteuid() == 0 else ()
    with under_way(place.folder / "new", cwd=place.folder, prefix=prefix) as process:
        checkpoints.mkdir(exist_ok=True)
        checkpoints.chmod(0o500)
        process.send_signal(signal.SIGTERM)
        place.ended(process)
    checkpoints.chmod(0o700)
    return place


def rename_class(place: Place) -> None:
    for path in (place.folder / "coco/annotations").iterdir():
        text = path.read_text().replace('"cat"', '"lynx"')
        replace(path, lambda path=path, text=text: path.write_text(text))  # type: ignore[misc]


def other_classes(place: Place) -> Place:
    rename_class(place)
    return place.dedetr(*GO_ON, "--data", "coco")


def without_override() -> list[str]:
    return [word for word in GO_ON if word != "--override"]


def fine_tuned(place: Place) -> Place:
    rename_class(place)
    return place.dedetr("train", "--weights", "run", *without_preset(), "--out", "new")


def without_preset() -> list[str]:
    """Leave the architecture to the weights."""
    return [
        "--data",
        "coco",
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--short-side",
        "64",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]


def other_decoder(place: Place) -> Place:
    return place.dedetr("train", "--weights", "run", *without_preset(), "--model", "conddetr", "--out", "new")


def second_run(place: Place) -> Place:
    with under_way(place.folder / "new", cwd=place.folder):
        return place.dedetr("train", "--resume", "--out", "new")


def newer_format(place: Place) -> Place:
    place.change("model.pt", lambda content: content | {"format_version": 99, "made_by": "7.8.9"})
    return place.dedetr(*GO_ON)


def compared(place: Place, *flags: str) -> Place:
    """Go on with a run as it was, and otherwise; the loss of the steps since is added to what was said."""
    shutil.copytree(place.folder / "run", place.folder / "as-it-was", symlinks=True)
    place.dedetr(*GO_ON[:-1], "as-it-was")
    place.dedetr(*GO_ON, *flags)
    losses = [[line["loss"] for line in records(place.folder / name)][-2:] for name in ("run", "as-it-was")]
    texts = ["and".join(f" {loss:.6f} " for loss in row).strip() for row in losses]
    place.said = place.said.replace("-> run", f"-> run; losses {texts[0]}, as the run was {texts[1]}")
    return place


FROZEN = ["--set", "backbone.norm=frozen_batch_norm", "--set", "data.augment=false"]
"""Where several processes equal one."""


def more_processes(place: Place) -> Place:
    shutil.rmtree(place.folder / "run")
    place.dedetr("train", *SHORT, *FROZEN, "--epochs", "2", "--out", "run")
    return compared(place, "--nproc", "2")


def records(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def overflow(place: Place) -> Place:
    small = ["--short-side", "16", "--set", "data.max_long_side=16", "--set", "run.eval_every=99", "--epochs", "60"]
    flags = [*SHORT, *small, "--precision", "float16", "--set", "loss.class_weight=1e34"]
    place.dedetr("train", *flags, "--out", "new")
    assert [line["num_skipped"] for line in records(place.folder / "new")] == list(range(1, 50))
    return place


def no_memory(place: Place) -> Place:
    return place.dedetr("300", "train", *SHORT, *LARGE, "--out", "new", program=("-c", _LITTLE_MEMORY))


def nothing_found(place: Place) -> Place:
    return place.dedetr("predict", "coco/val2017", "--checkpoint", "run", "--threshold", "1", "--out", "vis")


def no_val_boxes(place: Place) -> Place:
    path = place.folder / "coco/annotations/instances_val2017.json"
    write_json(path, json.loads(path.read_text()) | {"annotations": []})
    place.dedetr("train", *SHORT, "--out", "new", "--json")
    assert '"AP": null' in place.said
    return place


def few_images(place: Place) -> str:
    path = place.folder / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    first = content["images"][0]["id"]
    boxes = [box for box in content["annotations"] if box["image_id"] == first]
    write_json(path, content | {"images": content["images"][:1], "annotations": boxes})
    results = []
    for count in ("1", "3"):
        place.dedetr("eval", "--checkpoint", "run", "--nproc", count, "--json")
        results.append(json.loads(place.said[place.said.index("{\n") :])["evaluation"])
    assert results[0] == results[1]
    place.said = f"error: all numbers are equal, to the last digit: {results[0]['num_detections']} detections, AP 0"
    return str(place.code)


def lost_process(place: Place) -> Place:
    with under_way(place.folder / "new", "--nproc", "2", cwd=place.folder) as process:
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        return place.ended(process)


def spoilt_image(place: Place) -> Place:
    with under_way(place.folder / "new", "--nproc", "2", cwd=place.folder) as process:
        (place.folder / "coco/train2017/003.png").write_bytes(b"")
        return place.ended(process)


def user_error(place: Place) -> Place:
    (place.folder / "coco/train2017/003.png").unlink()
    place.dedetr("train", *SHORT, "--nproc", "2", "--out", "new")
    assert place.said.count("error: ") == 1
    return place


def killed_worker(place: Place, num_processes: int = 1) -> Place:
    flags = ["--workers", "1"] if num_processes == 1 else ["--workers", "1", "--nproc", str(num_processes)]
    with under_way(place.folder / "new", *flags, cwd=place.folder) as process:
        owner = process.pid if num_processes == 1 else process_of_rank(1, process.pid)
        (worker,) = children(owner)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(2)
        os.kill(worker, signal.SIGKILL)
        return place.ended(process)


def small_shm(place: Place, kilobytes_taken: int) -> Place:
    mount = f"mount -t tmpfs -o size=96k tmpfs /dev/shm && head -c {kilobytes_taken}k /dev/zero > /dev/shm/taken"
    prefix = [
        *(["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]),
        "bash",
        "-c",
        f'{mount} && exec "$@"',
        "-",
    ]
    large = ["--short-side", "200", "--set", "data.max_long_side=300"]
    return place.dedetr("train", *SHORT, *large, "--workers", "1", "--out", "new", prefix=prefix)


def torchrun_port(place: Place) -> Place:
    with busy_port() as port:
        program = [*TORCHRUN[1:], "--nproc-per-node", "2", "--master-port", port, "-m", "dedetr_cli"]
        place.dedetr("train", *SHORT, "--out", "new", program=program)
    place.said = next(line for line in place.said.splitlines() if "EADDRINUSE" in line)  # torchrun's own traceback
    return place


def too_many(place: Place, num_processes: str, batch_size: str) -> Place:
    return place.dedetr("train", *SHORT, "--batch-size", batch_size, "--nproc", num_processes, "--out", "new")


def as_rank(rank: str, port: str = "1") -> dict[str, str]:
    return {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}


def nproc_in_torchrun(place: Place) -> Place:
    return place.dedetr("train", *SHORT, "--nproc", "2", "--out", "new", **as_rank("0"))


def busy(place: Place, rank: str) -> Place:
    with busy_port() as port:
        return place.dedetr("train", *SHORT, "--out", "new", **as_rank(rank, port))


def foreign_variables(place: Place) -> Place:
    variables: Mapping[str, str] = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "RANK": "1", "WORLD_SIZE": "4"}
    return place.dedetr("eval", "--checkpoint", "run", **variables)


def same_batches(place: Place) -> str:
    losses = []
    for count in ("1", "2"):
        place.dedetr("train", *SHORT, *FROZEN, "--nproc", count, "--out", f"new-{count}")
        losses.append(records(place.folder / f"new-{count}")[0]["loss"])
    assert abs(losses[0] - losses[1]) < 1e-5 * losses[0]
    place.said = f"error: {losses[0]:.6f} and {losses[1]:.6f}; images and pixels of each step are equal (tests)"
    return str(place.code)


def shown(place: Place, pick: str | None) -> str:
    """Return the line to show of what was said."""
    assert "Traceback" not in place.said, place.said
    lines = place.said.splitlines()
    known = [line for line in lines if (pick in line if pick else line.startswith("error: "))]
    assert known, place.said
    line = known[0].removeprefix("error: ").removeprefix("warning: ").strip(" │")
    line = line.replace(f"{place.folder}/", "").replace(f"{place.folder.parent / 'finished'}/", "").replace("|", "\\|")
    return line if len(line) <= 300 else line[:297] + "..."


def print_table(wanted: Sequence[str]) -> None:
    """Print the rows, all or those of some faults."""
    print("| fault | what was done to the process | what was seen | exit code |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        finished = Path(name) / "finished"
        finished.mkdir()
        make_coco_layout(finished / "coco")
        for flags in (SHORT, ["--resume", "--override", "--epochs", "2"]):
            assert _typed("train", *flags, "--out", "run", cwd=finished)[0] == 0
        for number, (fault, what, act, pick) in enumerate(rows()):
            if wanted and fault not in wanted:
                continue
            folder = Path(name) / str(number)
            shutil.copytree(finished, folder, symlinks=True)
            place = Place(folder)
            ended = act(place)
            code = ended if isinstance(ended, str) else str(place.code)
            print(f"| {fault} | {what} | {shown(place, pick)} | {code} |", flush=True)
            shutil.rmtree(folder)
