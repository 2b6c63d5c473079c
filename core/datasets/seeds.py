"""Random generators that are pure functions of what they are for.

Shuffling follows from (seed, epoch) and augmentation from (seed, epoch, image), so that the number of workers,
the number of processes and the step at which a run resumes cannot change them.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(purpose: str, *numbers: int) -> int:
    """Return a seed in [0, 2^63) that is the same in every process and on every machine."""
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derived_generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(purpose, *numbers))
