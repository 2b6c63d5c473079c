"""Our detectors answer what the reference's answer, and learn what they learn, in every recorded variant."""

from __future__ import annotations

import pytest

from core.models.reference_keys import from_reference_state, share_heads
from tests.golden_files import GOLDEN_NAMES
from tests.models.parity import forward_differences, gradient_differences, recorded, worst

WITH_GRADIENTS = [name for name in GOLDEN_NAMES if "gradnorm" in recorded(name)]
SPARSE = [name for name in GOLDEN_NAMES if recorded(name).spec.is_sparse]


def test_all_recordings_are_there():
    assert len(GOLDEN_NAMES) == 19
    assert len(WITH_GRADIENTS) == 7
    assert len(SPARSE) == 15


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_forward(name):
    differences = forward_differences(recorded(name))
    assert {"logits", "boxes", "memory", "states", "masks"} <= {each.kind for each in differences}
    assert [each for each in differences if not each.ratio <= 1] == []


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name):
    differences = gradient_differences(recorded(name))
    assert sum(each.kind == "gradients" for each in differences) > 150
    assert [each for each in differences if not each.ratio <= 1] == []


@pytest.mark.parametrize("name", SPARSE)
def test_forward_by_the_fast_attention(name):
    differences = forward_differences(recorded(name), "fast")
    assert [each for each in differences if not each.ratio <= 1] == []


@pytest.mark.parametrize("name", [name for name in WITH_GRADIENTS if name in SPARSE])
def test_gradients_by_the_fast_attention(name):
    differences = gradient_differences(recorded(name), "fast")
    assert [each for each in differences if not each.ratio <= 1] == []


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_name_of_a_shared_tensor_is_understood(name):
    golden = recorded(name)
    state = from_reference_state(golden.reference_state(aliases=True))
    if not golden.model_config.box_refinement:
        state = share_heads(state)
    detector = golden.detector()
    assert state.keys() == detector.state_dict().keys()


def test_recordings_are_far_from_the_tolerance():
    """A change that costs a digit of precision is seen before it breaks parity."""
    assert worst(forward_differences(recorded("de-detr"))) < 0.5
