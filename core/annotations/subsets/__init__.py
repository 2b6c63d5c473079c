"""Parts of the train split: made once, written with a manifest, found again by what they are.

Subsets of one seed are nested: the images of 1 % are among those of 2 %, those of 5 shots among those of 10. A subset
of rate r has floor(r * N) images, at least one, which are the paper's 1182, 2365, 5914 and 11828 of COCO's 118287.
Images are always taken whole, with all that is labelled on them: an object whose box is left out would be learned as
background.
"""

from core.annotations.subsets.find import describe_subset, find_subset
from core.annotations.subsets.make import FoldReport, FoldsReport, SubsetReport, asked_for, subsample, subsample_folds
from core.annotations.subsets.manifest import SubsetManifest, read_manifest
from core.annotations.subsets.selection import RULE, Selection, check_rate, select

__all__ = [
    "RULE",
    "FoldReport",
    "FoldsReport",
    "Selection",
    "SubsetManifest",
    "SubsetReport",
    "asked_for",
    "check_rate",
    "describe_subset",
    "find_subset",
    "read_manifest",
    "select",
    "subsample",
    "subsample_folds",
]
