"""Whether the operators that models are made of can be called, and give what they must give."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from core.doctor.check import Check
from core.doctor.packages import PAIR_HINT
from core.errors import MachineError

_TOLERANCE = 1e-9
"""In float64, on problems whose numbers are about one."""


def look_at_operators(device: str = "cpu") -> Iterator[Check]:
    """Call torchvision's NMS and RoIAlign on a device, on problems whose answers are known.

    Raises:
        MachineError: torchvision was installed without its compiled operators.
    """
    import torch

    from core.ops.nms import nms_per_class

    name = f"torchvision operators on {device}"
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [5, 5, 9, 9]], device=device, dtype=torch.float32)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    kept = nms_per_class(boxes, scores, torch.zeros(3, dtype=torch.int64, device=device), 0.5).tolist()
    if kept != [0, 2]:
        yield Check(name, "fail", f"NMS keeps boxes {kept} instead of [0, 2]", PAIR_HINT)
    elif not (error := _roi_align_error("torchvision", device)) <= _TOLERANCE:  # NaN is wrong too
        yield Check(name, "fail", f"RoIAlign is wrong by {error:.2g}", PAIR_HINT)
    else:
        yield Check(name, "ok", "NMS and RoIAlign give what they must")


def look_at_roi_backends() -> Iterator[Check]:
    """Tell whose RoIAlign there is; detectron2's is an option, for the plain attention alone."""
    name = "RoIAlign of detectron2"
    try:
        error = _roi_align_error("detectron2", "cpu")
    except MachineError as missing:
        if find_spec("detectron2") is None:
            yield Check(name, "ok", f"not installed (optional: {missing.hint})")
        else:
            yield Check(name, "warn", missing.message, missing.hint)
        return
    if error <= _TOLERANCE:
        yield Check(name, "ok", "gives what torchvision's gives")
    else:
        yield Check(name, "warn", f"is wrong by {error:.2g}", "use model.roi_backend=torchvision")


def look_at_attention(device: str = "cpu") -> Iterator[Check]:
    """Compare the fast sparse attention with the plain one on a tiny problem, in float64."""
    import torch

    from core.ops.absorbed_attention import AbsorbedSparseAttention
    from core.ops.roi_pool import FeaturePyramid
    from core.ops.sparse_attention import Affine, KeyValueProjection, PlainSparseAttention, SparseAttention

    dim, num_heads, num_queries = 8, 2, 5
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(device)

    levels = [draw(1, dim, 8, 8), draw(1, dim, 4, 4)]
    pyramid = FeaturePyramid(levels, [torch.zeros_like(level) for level in levels], (8, 16))
    corners = 64 * torch.rand(1, num_queries, 2, 2, generator=random, dtype=torch.float64)
    boxes_xyxy_px = torch.cat([corners.amin(2), corners.amax(2)], dim=-1).to(device)
    query = draw(1, num_queries, num_heads, dim // num_heads)
    projection = KeyValueProjection(Affine(draw(dim, dim), draw(dim)), Affine(draw(dim, dim), draw(dim)))

    def attend(attention: SparseAttention) -> torch.Tensor:
        return attention(query, None, pyramid, boxes_xyxy_px, projection, scale=0.5)

    with torch.no_grad():
        difference = (attend(AbsorbedSparseAttention(4)) - attend(PlainSparseAttention(4))).abs().max().item()
    name = f"sparse attention on {device}"
    if difference <= _TOLERANCE:  # NaN is wrong too
        yield Check(name, "ok", f"fast and plain agree (to {difference:.1g})")
    else:
        hint = "use --set model.attention=plain, and report it with these lines"
        yield Check(name, "fail", f"fast and plain differ by {difference:.2g}", hint)


def _roi_align_error(backend: str, device: str) -> float:
    """Crop a box from a ramp, and return how far the crop is from the ramp's own values.

    Raises:
        MachineError: the backend is not installed, or not whole.
    """
    import torch

    from core.ops.roi_pool import find_roi_align

    align = find_roi_align(backend)
    ramp = torch.arange(8, dtype=torch.float64, device=device).expand(1, 1, 8, 8).contiguous()
    rois = torch.tensor([[0, 1, 1, 5, 5]], dtype=torch.float64, device=device)
    # Pixel centres lie at half coordinates: the left half of this box has its middle at 2, the right one at 4.
    expected = torch.tensor([1.5, 3.5], dtype=torch.float64, device=device).expand(1, 1, 2, 2)
    difference: float = (align(ramp, rois, 2, 1.0) - expected).abs().max().item()
    return difference
