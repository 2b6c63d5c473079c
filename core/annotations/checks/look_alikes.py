"""Pictures that look almost the same, kept on one side when a set is parted: val is to show pictures never seen."""

from __future__ import annotations

from collections.abc import Mapping

from core.annotations.checks.near_duplicates import find_near_duplicates
from core.annotations.checks.repeats import Picture
from core.annotations.content import SplitContent
from core.annotations.parting import joined

LARGEST_SHARE = 0.1
"""Of the pictures that one kind may be and still be kept together."""
_FEW = 4


def look_alikes(
    splits: Mapping[str, SplitContent], repeats: Mapping[Picture, Picture]
) -> tuple[dict[Picture, Picture], list[str]]:
    """Find the pictures that look almost like another one.

    Where one looks like a second, which looks like a third, all are of one kind. Of a camera that never moves all
    pictures may be: a kind of more than a tenth of them is not kept together, and a note says so.

    Args:
        splits: what is to be parted; images are decoded, reduced.
        repeats: pictures whose very file repeats an earlier one, and that one.

    Returns:
        Such pictures and the one that each looks like, and notes.

    Raises:
        DataError: an image cannot be decoded.
    """
    pairs = find_near_duplicates(splits, repeats) if len(splits) > 1 else []
    for name, content in splits.items():
        pairs += find_near_duplicates({name: content}, repeats)
    found = {pair.second: pair.first for pair in pairs}
    pictures = sorted({*found, *found.values()})
    num_images = sum(len(content.annotations.images) for content in splits.values())
    most = max(_FEW, int(LARGEST_SHARE * num_images))
    large = [kind for kind in joined(pictures, found.items()) if len(kind) > most]
    apart = {picture for kind in large for picture in kind}
    together = {picture: other for picture, other in found.items() if picture not in apart}
    notes = []
    if together:
        notes.append(f"pictures that look almost like another, kept on its side of the split: {len(together)}")
    if apart:
        notes.append(
            f"pictures that look almost alike, too many to keep on one side: {len(apart)}, such as "
            f"{large[0][0][1]} and {large[0][1][1]}; --group keeps together those of a day, a place or a video"
        )
    return together, notes
