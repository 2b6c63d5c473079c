"""Label augmentation (paper, section 4.3): labels are repeated, so that more queries learn from each box.

Pure: targets in, new targets out. Used in training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from core.config.schema import LabelAugmentationConfig
from core.structures import Target


def has_policy(config: LabelAugmentationConfig) -> bool:
    """Return whether the configuration repeats labels at all."""
    return config.repeat_time is not None or config.repeat_ratio is not None


def augmented_count(num_labels: int, config: LabelAugmentationConfig, num_queries: int) -> int:
    """Return how many labels an image with `num_labels` has after augmentation."""
    times, num_extra = _repetition(num_labels, config, num_queries)
    return num_labels * times + num_extra


def augment_labels(
    target: Target, config: LabelAugmentationConfig, num_queries: int, generator: torch.Generator
) -> Target:
    """Repeat the labels of one image.

    Repeat time k: every label appears k times. Repeat ratio r, with n labels and m = int(r * num_queries): if
    0 < n < m, every label appears m // n times, and m % n that are drawn at random once more; otherwise once.
    The labels as annotated come first, in their order, then each round of copies in the same order, then
    those drawn at random.

    Args:
        target: labels as annotated; left as it is.
        config: the policy.
        num_queries: Q of the detector; read by repeat ratio.
        generator: read by repeat ratio, one permutation of n for each image with 0 < n < m.

    Returns:
        A new target with `copy_index` set, 0 for the labels as annotated; `target` itself without a policy.
    """
    if not has_policy(config):
        return target
    if target.copy_index is not None:
        raise ValueError("the labels of this target are augmented already")
    num_labels = len(target)
    times, num_extra = _repetition(num_labels, config, num_queries)
    source = torch.arange(num_labels).repeat(times)
    copy_index = torch.arange(times).repeat_interleave(num_labels)
    if config.repeat_ratio is not None and augmented_count(num_labels, config, num_queries) > num_labels:
        # Drawn even where nothing is left over, as the reference does: the next image's draw depends on it.
        order = torch.randperm(num_labels, generator=generator, device=generator.device).cpu()
        source = torch.cat([source, order[:num_extra]])
        copy_index = torch.cat([copy_index, torch.full((num_extra,), times)])
    device = target.labels.device
    source = source.to(device)
    return replace(
        target,
        boxes_cxcywh_norm=target.boxes_cxcywh_norm[source],
        labels=target.labels[source],
        copy_index=copy_index.to(device),
    )


def augment_batch(
    targets: Sequence[Target], config: LabelAugmentationConfig, num_queries: int, generator: torch.Generator
) -> list[Target]:
    """Repeat the labels of each image, in order; see `augment_labels`."""
    return [augment_labels(target, config, num_queries, generator) for target in targets]


def _repetition(num_labels: int, config: LabelAugmentationConfig, num_queries: int) -> tuple[int, int]:
    """Return how often every label appears, and how many of them once more."""
    if config.repeat_time is not None:
        return config.repeat_time, 0
    if config.repeat_ratio is not None:
        wanted = int(config.repeat_ratio * num_queries)
        if 0 < num_labels < wanted:
            return divmod(wanted, num_labels)
    return 1, 0
