"""What the reference recorded about labels, matches and losses, and checks that ours say the same.

The checks raise AssertionError; tests of parity and of mutations share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch

from core.label_augmentation import augment_batch
from core.losses.criterion import Criterion
from core.losses.matcher import Matcher
from core.structures import Target
from tests.golden_files import Golden

# Set with the recorded criterion's call; the draws of torch's global generator are those of a fresh one.
RECORDED_SEED = 1234
LOSS_TOLERANCE = 1e-5


class Case(NamedTuple):
    """One recorded call of the reference's criterion."""

    target_set: str
    two_stage: bool
    training: bool

    @property
    def key(self) -> str:
        stage = "two_stage/" if self.two_stage else ""
        return f"{self.target_set}/{stage}{'train' if self.training else 'eval'}"


@cache
def recorded(name: str) -> Golden:
    return Golden(name)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(RECORDED_SEED)


def cases(golden: Golden) -> Iterator[Case]:
    """Yield the recorded calls, without D/two_stage, where the reference matches queries twice."""
    for key in golden.keys("loss/"):
        parts = key.split("/")
        case = Case(target_set=parts[1], two_stage="two_stage" in parts, training="train" in parts)
        if parts[-1] == "total" and not (case.target_set == "D" and case.two_stage):
            yield case


def trained_targets(golden: Golden, case: Case) -> list[Target]:
    targets = golden.targets(case.target_set)
    if not case.training:
        return targets
    num_queries = golden.output().logits.shape[2]
    return augment_batch(targets, golden.label_augmentation_config, num_queries, generator())


def check_augmentation(golden: Golden, target_set: str) -> None:
    augmented = trained_targets(golden, Case(target_set, two_stage=False, training=True))
    originals = golden.targets(target_set)
    for image, (target, original) in enumerate(zip(augmented, originals, strict=True)):
        prefix = f"aug/{target_set}/{image}"
        assert torch.equal(target.boxes_cxcywh_norm, golden.tensor(f"{prefix}/boxes")), prefix
        assert torch.equal(target.labels, golden.tensor(f"{prefix}/labels")), prefix
        # The recorded flags (1: as annotated) are mis-sized by repeat ratio; the first round is right.
        flags = golden.tensor(f"{prefix}/repeat") if f"{prefix}/repeat" in golden else torch.ones(len(original))
        num_flags = min(len(flags), len(target))
        assert target.copy_index is not None
        if golden.label_augmentation_config.repeat_time is not None:
            assert num_flags == len(target), prefix
        assert torch.equal((target.copy_index == 0)[:num_flags], flags.bool()[:num_flags]), prefix


def check_matches(golden: Golden, case: Case) -> None:
    targets = trained_targets(golden, case)
    matcher = Matcher(golden.loss_config, golden.spec.family, case.two_stage)
    output = golden.output()
    matches = matcher(output, targets)
    for layer in range(len(output.logits)):
        for image, target in enumerate(targets):
            prefix = f"match/{case.key}/layer{layer}/{image}"
            query, index = matches.of(layer, image)
            theirs = golden.tensor(f"{prefix}/tgt").long()
            assert query.tolist() == golden.tensor(f"{prefix}/src").tolist(), prefix
            # Copies of a label cost the same: which of them a query gets is a tie.
            assert torch.equal(target.labels[index], target.labels[theirs]), prefix
            assert torch.equal(target.boxes_cxcywh_norm[index], target.boxes_cxcywh_norm[theirs]), prefix


def check_losses(golden: Golden, case: Case) -> None:
    augmentation = golden.label_augmentation_config.model_copy(update={"two_stage_match": case.two_stage})
    criterion = Criterion(golden.loss_config, augmentation, golden.spec.family, golden.num_classes)
    criterion.train(case.training)
    losses = criterion(golden.output(), golden.targets(case.target_set), generator())
    ours = losses.terms | {"total": losses.total}
    prefix = f"loss/{case.key}/"
    theirs = {key.removeprefix(prefix): golden.tensor(key) for key in golden.keys(prefix)}
    assert set(ours) == set(theirs), prefix
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value.float(), rtol=LOSS_TOLERANCE, atol=LOSS_TOLERANCE, msg=lambda text: f"{prefix}: {text}"
        )


def check_all(golden: Golden) -> None:
    for target_set in {key.split("/")[1] for key in golden.keys("aug/")}:
        check_augmentation(golden, target_set)
    for case in cases(golden):
        check_matches(golden, case)
        check_losses(golden, case)
