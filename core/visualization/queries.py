"""What a detector's queries do with one image, written as pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from core.assembly import Assembly
from core.datasets.batches import collate
from core.datasets.dataset import Sample
from core.datasets.seeds import derived_generator
from core.errors import DivergedError
from core.visualization.attention import draw_attention
from core.visualization.matches import draw_matches
from core.visualization.pictures import enlarged, save_picture
from core.visualization.recording import best_queries, match_labels, record_attention

_MIN_SIDE_PX, _MAX_SIDE_PX = 800, 2000  # of a picture of matches, on which many numbers stand


def draw_queries(
    assembly: Assembly,
    device: torch.device,
    image: Image.Image,
    sample: Sample,
    *,
    matches: Path | None,
    attention: Path | None,
    num_queries_shown: int,
) -> None:
    """Run a detector on an image, and write which queries learn from which label, and where queries look.

    The detector is in evaluation mode: no dropout, and the image as evaluation sees it. Labels are repeated by the
    configuration's own policy; a random one draws from the run's seed and the image's id.

    Args:
        assembly: the detector, on `device`, and its configuration.
        device: where the detector is.
        image: RGB, as annotated.
        sample: the same image as the detector sees it, with the labels that training would see.
        matches: the PNG file of matches; None for none.
        attention: that of attention, likewise.
        num_queries_shown: in the picture of attention, the surest first.

    Raises:
        DivergedError: the detector's answers are not finite numbers.
        MachineError: a picture cannot be written.
    """
    config, names = assembly.config, [category.name for category in assembly.classes]
    batch = collate([sample]).to(device)
    with torch.inference_mode(), record_attention(assembly.model) as record:
        output = assembly.model(batch.images)
    if not all(bool(each.isfinite().all()) for each in output):
        raise DivergedError(
            "the detector answers with numbers that are not finite: its weights are damaged, or its training diverged",
            where=f"image id {sample.image_id}",
            hint="take an earlier checkpoint",
        )
    if matches is not None:
        policy, matcher = config.label_augmentation, assembly.criterion.matcher
        generator = derived_generator("labels of a picture", config.run.seed, sample.image_id)
        found = match_labels(output, sample.target, policy, matcher, generator)
        sized, _ = enlarged(image, _MIN_SIDE_PX)
        sized.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
        save_picture(draw_matches(sized, found, names, policy, config.model.num_queries), matches)
    if attention is not None:
        answers = best_queries(output, assembly.spec.family, config.postprocess.nms_iou, num_queries_shown)
        save_picture(draw_attention(image, record, answers, names), attention)
