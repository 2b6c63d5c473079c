"""All that reads what somebody else wrote, given files that were spoilt: what `python benchmarks/fuzz.py` does a
hundred thousand times, and `test_fuzz.py` a few dozen times.

The rule: a result, or an error of `core.errors`, and no other exception; memory in proportion to what lies in the
folder (`allowance`); and what a reader returns without dropping anything comes back from the COCO file that
`prepare-data` would write of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings, strategies

from core.annotations.coco import encode_coco, inspect_coco
from core.annotations.content import Source
from core.annotations.faults import TITLES, Fault
from core.annotations.images import read_header
from core.annotations.prepared import require_same_classes
from core.errors import DataError, DedetrError, MachineError, UsageError
from tests.faults.fuzz_mutations import WORDS, Spoil, pick
from tests.faults.fuzz_sources import Tree

FREE_BYTES = 50_000_000
BYTES_PER_BYTE = 200
"""Of the folder: a YAML node of one letter takes PyYAML about 150 bytes and more."""
BYTES_PER_PIXEL = 16
"""Of images whose headers are accepted: 4 as decoded, up to 12 while they are counted or turned. A pixel may take no
byte of its file."""

READ = "read"


@dataclass(frozen=True)
class Link:
    """A link in a folder, in place of a file."""

    to: str


class Folder:
    """A folder in place of a file."""


SpoiltTree = dict[str, "bytes | Link | Folder"]


@dataclass(frozen=True)
class Target:
    """Something that reads.

    Attributes:
        name: of the target.
        sources: make the sound files.
        spoils: what spoils files, by how their names end.
        use: reads what lies in a folder and returns `READ` or the code of the error; the generator decides on options.
        chance_of_damage: how often names, links and folders are spoilt, and not what stands in files.
    """

    name: str
    sources: tuple[Callable[[], Tree], ...]
    spoils: Mapping[str, tuple[Spoil, ...]]
    use: Callable[[Path, Random], str]
    chance_of_damage: float = 0.1


@dataclass
class Example:
    """A spoilt folder; `seed` is of the options it is read with."""

    tree: Mapping[str, bytes | Link | Folder]
    seed: int

    def write(self, root: Path) -> None:
        """Put it on disk, but for names that the file system cannot have."""
        root.mkdir(parents=True)
        for name, content in self.tree.items():
            path = Path(os.path.normpath(root / name))
            if not path.is_relative_to(root) or path == root:
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Link):
                    path.symlink_to(content.to)
                elif isinstance(content, Folder):
                    path.mkdir()
                else:
                    path.write_bytes(content)
            except (OSError, ValueError, RecursionError):
                continue


class Finding(AssertionError):  # noqa: N818 (no error of the harness)
    """Something that breaks the rule."""

    def __init__(self, target: Target, example: Example, what: str) -> None:
        super().__init__(f"{target.name}: {what}; options of seed {example.seed}, files {sorted(example.tree)}")
        self.example = example


def make_example(random: Random, target: Target) -> Example:
    """Spoil one of a target's sources: mostly one value in one file."""
    tree: SpoiltTree = dict(pick(random, target.sources)())
    if target.chance_of_damage and random.random() < target.chance_of_damage:
        for _ in range(pick(random, (1, 1, 2, 4))):
            _damage(random, tree)
    else:
        spoils = {name: spoil for name in tree if (spoil := _spoils_of(target, name))}
        for name in {pick(random, list(spoils)) for _ in range(pick(random, (1, 1, 1, 2)) if spoils else 0)}:
            content = tree[name]
            assert isinstance(content, bytes)
            tree[name] = pick(random, spoils[name])(random, content)
    return Example(tree, random.randrange(1 << 16))


def _spoils_of(target: Target, name: str) -> tuple[Spoil, ...]:
    return next((spoils for end, spoils in target.spoils.items() if name.endswith(end)), ())


def _damage(random: Random, tree: SpoiltTree) -> None:
    """Remove, empty, rename, move or add files, or put something else in their place."""
    if not tree:
        return
    name, other, action = pick(random, list(tree)), pick(random, list(tree)), random.randrange(10)
    folder = name.rpartition("/")[0]
    if action == 0:
        del tree[name]
    elif action == 1:
        tree[name] = b""
    elif action == 2:
        tree[name] = Folder()
    elif action == 3:
        to = pick(random, ("nowhere", Path(name).name, "..", ".", "/etc/hostname", Path(other).name, "a\n"))
        tree[name] = Link(to)
    elif action == 4:
        tree[name], tree[other] = tree[other], tree[name]
    elif action == 5:
        tree[f"{folder}/{pick(random, WORDS)}"] = tree.pop(name)
    elif action == 6:
        stem, dot, end = name.rpartition(".")
        bad = pick(random, ("\udcff", "\n", "\u202e", " ", "'\"", "%s", "{}", "\x1b[31m"))
        tree[f"{stem}{bad}{dot}{end}"] = tree[name] if random.randrange(2) else tree.pop(name)
    elif action == 7:
        tree[f"{folder}/{pick(random, WORDS)}"] = tree[other]
    elif action == 8:
        for inside in [inside for inside in tree if inside.startswith(f"{folder}/")]:
            del tree[inside]
        instead: tuple[bytes | Link | Folder, ...] = (b"", Folder(), Link("nowhere"), Link("."))
        tree[folder or "x"] = pick(random, instead)
    else:
        tree[name.upper()] = tree.pop(name)


def _can_tell_resident() -> bool:
    """Say whether the system tells the peak of the process's size, and lets it be reset (Linux)."""
    return os.access("/proc/self/clear_refs", os.W_OK) and os.access("/proc/self/status", os.R_OK)


@dataclass
class Memory:
    """Measures the most memory that is taken for a while, beyond what was in use before.

    Attributes:
        is_traced: trace what Python allocates, which makes all of it many times slower; else take the growth of the
            process, other libraries' memory too. What was freed before and is used again does not show in that.
        peak_bytes: what was taken the last time.
    """

    is_traced: bool = field(default_factory=lambda: not _can_tell_resident())
    peak_bytes: int = field(default=0, init=False)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Set `peak_bytes`."""
        before = 0
        if self.is_traced:
            tracemalloc.start()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
            before = _resident("VmRSS")
        try:
            yield
            peak = tracemalloc.get_traced_memory()[1] if self.is_traced else _resident("VmHWM")
        finally:
            tracemalloc.stop()
        self.peak_bytes = max(0, peak - before)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_bytes().splitlines()
    line = next(line for line in lines if line.startswith(key.encode()))
    return int(line.split()[1]) * 1024


def allowance(example: Example) -> int:
    """Return how many bytes of memory the contents of a folder justify, but for the pixels of its images."""
    return FREE_BYTES + BYTES_PER_BYTE * sum(len(body) for body in example.tree.values() if isinstance(body, bytes))


def _pixels_below(root: Path) -> int:
    """Return how many pixels the images in a folder have by their headers, where these are accepted."""
    total = 0
    for path in root.rglob("*"):
        try:
            width, height, _ = read_header(path)
        except DataError:
            continue
        total += width * height
    return total


@contextmanager
def _usual_recursion() -> Iterator[None]:
    """Let functions call each other as deeply as in a process of their own; hypothesis allows for more."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 1000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class Overtime(BaseException):
    """Reading takes too long; no reader catches it."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `Overtime` in the main thread after so many seconds of computing, 0 for never."""

    def stop(*_: object) -> None:
        raise Overtime(f"took more than {seconds:g} s")

    if not seconds:
        yield
        return
    earlier = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)


def run(target: Target, example: Example, folder: Path, memory: Memory, max_seconds: float = 0) -> str:
    """Let a target read an example.

    Args:
        target: the target.
        example: made for it.
        folder: for the files, which are removed again.
        memory: measures.
        max_seconds: of computing; more is a finding. 0: it may take as long as it does.

    Returns:
        `READ`, or the code of the error.

    Raises:
        Finding: the rule is broken.
    """
    root = folder / "work" / "source"
    try:
        example.write(root)
        try:
            with memory.measured(), _limited(max_seconds), _usual_recursion():
                outcome = target.use(root, Random(example.seed))
        except (Exception, Overtime) as error:
            raise Finding(target, example, f"{type(error).__name__}: {error!s:.500}") from error
        if memory.peak_bytes > (allowed := allowance(example)):
            allowed += BYTES_PER_PIXEL * _pixels_below(root)
            if memory.peak_bytes > allowed:
                raise Finding(target, example, f"took {memory.peak_bytes} bytes, {allowed} are justified")
        return outcome
    finally:
        shutil.rmtree(folder / "work", ignore_errors=True)


def fuzz(
    target: Target,
    folder: Path,
    num_examples: int,
    memory: Memory,
    *,
    seed: int | None = None,
    max_seconds: float = 0,
    on_outcome: Callable[[str], None] = lambda _: None,
) -> None:
    """Let hypothesis make examples of a target, other than each other, and make a finding as small as it can.

    Args:
        target: the target.
        folder: see `run`.
        num_examples: how many.
        memory: see `run`.
        seed: None: always the same examples.
        max_seconds: see `run`.
        on_outcome: is told of every outcome.

    Raises:
        Finding: the rule is broken; the smallest example that does it.
    """
    findings: list[Finding] = []

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(strategies.randoms(use_true_random=False))
    def one(random: Random) -> None:
        try:
            outcome = run(target, make_example(random, target), folder, memory, max_seconds)
        except Finding as finding:
            findings.append(finding)
            raise
        if not findings:
            on_outcome(outcome)

    try:
        (one if seed is None else hypothesis.seed(seed)(one))()
    except Exception:
        if not findings:
            raise
    if findings:
        raise findings[-1]


def attempt(read: Callable[[], object]) -> str:
    """Return `READ`, or the code of the error that is raised as it should be."""
    try:
        read()
    except (UsageError, DataError, MachineError) as error:
        require_useful(error)
        return error.code or f"exit {error.exit_code}"
    return READ


def require_useful(error: DedetrError | Fault) -> None:
    """Check that an error says something, and that its code is known."""
    assert error.message.strip()
    assert error.code is None or error.code in TITLES


def require_usable(source: Source, scratch: Path) -> None:
    """Check that what was read is read again from the COCO file that is written of it.

    Raises:
        DataError: the splits have different classes, which is left to those who read sources.
    """
    first = next(iter(source.splits.values()))
    for split, content in source.splits.items():
        require_same_classes(first.annotations.categories, content.annotations.categories, "first", split)
    for split, content in source.splits.items():
        file = scratch / "again.json"
        file.write_bytes(encode_coco(content.annotations))  # not to wait for the disk a hundred thousand times
        try:
            again, _ = inspect_coco(file, content.image_root)
        except DataError as error:
            raise AssertionError(f"{split} was read, and its COCO file is refused: {error}") from error
        assert again == content.annotations, f"{split} is not what its COCO file says"
