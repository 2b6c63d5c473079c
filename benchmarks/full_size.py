"""Full-size models (ResNet-50, 300 queries) make some training steps: time and memory of each.

    python benchmarks/full_size.py --data COCO [--models dela-detr,dela-conddetr] [train flags]

Each in a fresh process, by the published recipe but for the batch and, where no ImageNet weights are at hand, random
backbone weights (norm and stem frozen all the same, so that the work is the same).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from runs import table, train

RANDOM_BACKBONE = [
    "--set", "backbone.weights=null", "--set", "backbone.norm=frozen_batch_norm", "--set", "backbone.freeze_stem=true",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", default="dela-detr,dela-conddetr")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=2)
    arguments, flags = parser.parse_known_args()
    flags += ["--data", arguments.data, "--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
    flags += ["--set", "run.log_every=1", *RANDOM_BACKBONE]
    rows = []
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            run = train(Path(folder) / "run", ["--preset", f"paper/coco/{model}", *flags])
            lines = run.lines("train")
        seconds = [arguments.batch_size / line["time_images_per_s"] for line in lines]
        losses = [line["loss"] for line in lines]
        rows.append(
            [
                model, len(lines), f"{losses[0]:.2f}", f"{losses[-1]:.2f}", f"{median(seconds):.1f}",
                f"{min(seconds):.1f} to {max(seconds):.1f}", f"{run.seconds:.0f}", f"{run.peak_mib:.0f}",
            ]
        )  # fmt: skip
    print(table(["model", "steps", "first loss", "last loss", "s/step", "from to", "s in all", "peak MiB"], rows))


if __name__ == "__main__":
    main()
