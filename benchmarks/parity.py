"""How far dedetr is from the reference's recorded runs: a table, file by file.

    python benchmarks/parity.py [--attention plain]

Every number is the largest difference of its kind divided by its tolerance (tests/golden/README.md): below 1 is
parity. Labels of detections must be equal; matches are counted, and compared modulo identical copies of a label.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.losses.criterion import Criterion
from tests.golden_files import GOLDEN_NAMES, Golden
from tests.losses.parity import cases, check_matches, generator
from tests.models.parity import (
    FORWARD_TOLERANCE,
    LOSS_FLOOR,
    LOSS_TOLERANCE,
    Difference,
    forward_differences,
    gradient_differences,
    recorded,
    worst,
)
from tests.models.test_postprocess import VARIANTS, detect

KINDS = ("memory", "tokens", "states", "logits", "boxes", "losses", "gradients", "detections")


def loss_differences(golden: Golden) -> list[Difference]:
    """Compare every recorded loss on the recorded outputs."""
    differences = []
    for case in cases(golden):
        augmentation = golden.label_augmentation_config.model_copy(update={"two_stage_match": case.two_stage})
        criterion = Criterion(golden.loss_config, augmentation, golden.spec.family, golden.num_classes)
        losses = criterion.train(case.training)(golden.output(), golden.targets(case.target_set), generator())
        for key in golden.keys(f"loss/{case.key}/"):
            name, expected = key.rsplit("/", 1)[-1], float(golden.array(key))
            ours = losses.total if name == "total" else losses.terms[name]
            ratio = abs(ours.item() - expected) / max(LOSS_TOLERANCE * abs(expected), LOSS_FLOOR)
            differences.append(Difference("losses", key, ratio))
    return differences


def detection_differences(golden: Golden) -> list[Difference]:
    """Compare recorded detections on the recorded outputs."""
    differences = []
    for variant in VARIANTS:
        for image, ours in enumerate(detect(golden, variant)):
            prefix = f"post/{variant}/{image}"
            if f"{prefix}/labels" not in golden:
                continue
            if not torch.equal(ours.labels, golden.tensor(f"{prefix}/labels")):
                differences.append(Difference("detections", f"{prefix}/labels", math.inf))
                continue
            for name, values in (("scores", ours.scores), ("boxes", ours.boxes_xyxy_px)):
                expected = golden.tensor(f"{prefix}/{name}")
                tolerance = FORWARD_TOLERANCE * expected.abs().max().item()
                ratio = (values - expected).abs().max().item() / tolerance
                differences.append(Difference("detections", f"{prefix}/{name}", ratio))
    return differences


def count_matches(golden: Golden) -> tuple[int, int]:
    """Return how many recorded calls of the matcher ours agrees with, and how many there are."""
    agreed, total = 0, 0
    for case in cases(golden):
        total += 1
        try:
            check_matches(golden, case)
            agreed += 1
        except AssertionError as error:
            print(f"{golden.name}: {error}", file=sys.stderr)
    return agreed, total


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare dedetr with the reference's recorded runs.")
    parser.add_argument("--attention", choices=("fast", "plain"), default="fast", help="implementation to compare")
    attention = parser.parse_args().attention
    torch.set_num_threads(1)
    print("| file | " + " | ".join(KINDS) + " | matches |")
    print("|---" * (len(KINDS) + 2) + "|")
    failed = False
    for name in GOLDEN_NAMES:
        golden = recorded(name)
        differences = forward_differences(golden, attention) + loss_differences(golden) + detection_differences(golden)
        if "gradnorm" in golden:
            differences += gradient_differences(golden, attention)
        present = {each.kind for each in differences}
        cells = [f"{worst(differences, kind):.3f}" if kind in present else "-" for kind in KINDS]
        agreed, total = count_matches(golden)
        failed |= worst(differences) > 1 or agreed < total
        print(f"| {name} | " + " | ".join(cells) + f" | {agreed}/{total} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
