"""A checkpoint as an object: images in, detections out, for a notebook or another program."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from core.annotations.images import open_image, to_rgb
from core.api.checkpoints import open_checkpoint
from core.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    import torch

    from core.annotations.records import Category
    from core.assembly import LoadedDetector

ImageLike = Any
"""A path, a PIL image, a numpy array (H, W, 3) uint8, or a torch tensor (3, H, W) uint8; colours as RGB."""

_EXPECTED = "a path, a PIL image, a numpy array (H, W, 3) uint8 or a torch tensor (3, H, W) uint8, or a list of these"


@dataclass(frozen=True, repr=False)
class Prediction:
    """What was found in one image, by falling score.

    Attributes:
        boxes_xyxy_px: (N, 4) float tensor, two corners in pixels, inside the image.
        scores: (N,) float tensor in [0, 1].
        labels: (N,) int64 tensor, positions in `classes`.
        classes: the detector's class names.
        size_wh: width and height of the image in pixels; of a file as people see it, its EXIF rotation applied.
        image: what was given to `predict`.
    """

    boxes_xyxy_px: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    size_wh: tuple[int, int]
    image: ImageLike

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {name}" for name, number in Counter(self.class_names).most_common())
        return f"Prediction({counts or 'nothing'})"

    @property
    def class_names(self) -> list[str]:
        """The class of each detection, N names."""
        return [self.classes[label] for label in self.labels.tolist()]

    def draw(self, image: ImageLike | None = None) -> Image.Image:
        """Return a picture with the detections on it.

        Args:
            image: what to draw on, of the same size; None for the image that was given to `predict`.

        Raises:
            UsageError: it is no image, or has another size.
            DataError: it is a file that cannot be read.
        """
        from torchvision.transforms.v2 import functional

        from core.visualization.draw import draw_detections

        canvas: Image.Image = functional.to_pil_image(_pixels(self.image if image is None else image))
        if canvas.size != self.size_wh:
            wanted = f"{self.size_wh[0]} x {self.size_wh[1]}"
            raise UsageError(f"expected an image of {wanted} pixels, got {canvas.width} x {canvas.height}")
        return draw_detections(canvas, self.boxes_xyxy_px, self.labels, self.scores, self.classes)

    def _repr_png_(self) -> bytes:
        """Return the drawing, for a notebook to show."""
        content = io.BytesIO()
        self.draw().save(content, format="PNG")
        return content.getvalue()


class TrainedDetector:
    """The detector of a checkpoint, on its device; made by `load_detector`.

    Attributes:
        classes: class names; the position of a name is its label.
        checkpoint: the weight file.
        device: where it computes.
    """

    def __init__(self, loaded: LoadedDetector, device: torch.device) -> None:
        self._assembly = loaded.assembly
        self.classes = tuple(category.name for category in loaded.assembly.classes)
        self.checkpoint = loaded.path
        self.device = device

    def __repr__(self) -> str:
        model = self._assembly.config.model.name
        return f"TrainedDetector({model}, {len(self.classes)} classes, {self.device}, {self.checkpoint})"

    @overload
    def predict(
        self,
        images: list[ImageLike] | tuple[ImageLike, ...],
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        batch_size: int = ...,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: ImageLike,
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        batch_size: int = ...,
    ) -> Prediction: ...

    def predict(
        self,
        images: ImageLike,
        *,
        threshold: float = 0.5,
        classes: Sequence[str] | None = None,
        batch_size: int = 1,
    ) -> Prediction | list[Prediction]:
        """Detect objects: the numbers that `dedetr predict` writes.

        Args:
            images: a path, a PIL image, a numpy array (H, W, 3) uint8 or a torch tensor (3, H, W) uint8, or a list of
                these; colours as RGB. Files are turned as their EXIF tags say; what is opened is taken as it stands
                (`PIL.ImageOps.exif_transpose` turns it).
            threshold: the least score that is kept, in [0, 1].
            classes: keep only objects of these names; None keeps all.
            batch_size: images at a time; changes the speed alone.

        Returns:
            One prediction for one image, a list for a list.

        Raises:
            UsageError: an image is of another kind, or the list is empty, or a class or number cannot be used.
            DataError: a file is missing or damaged.
        """
        from core.prediction.detect import detect

        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold must be in [0, 1], got {threshold}")
        if batch_size < 1:
            raise UsageError(f"batch_size must be 1 or more, got {batch_size}")
        given = list(images) if isinstance(images, (list, tuple)) else [images]
        if not given:
            raise UsageError(f"there is no image in the list; expected {_EXPECTED}")
        found = detect(
            self._assembly.model,
            self._assembly.postprocess,
            self._assembly.eval_transform,
            (_pixels(image) for image in given),
            self.device,
            batch_size=batch_size,
            threshold=threshold,
            labels=None if classes is None else labels_of(classes, self._assembly.classes),
        )
        predictions = list(self._predictions(given, found))
        return predictions if isinstance(images, (list, tuple)) else predictions[0]

    def _predictions(self, images: Sequence[ImageLike], found: Iterator[Any]) -> Iterator[Prediction]:
        for image, (size_wh, detections) in zip(images, found, strict=True):
            yield Prediction(
                boxes_xyxy_px=detections.boxes_xyxy_px,
                scores=detections.scores,
                labels=detections.labels,
                classes=self.classes,
                size_wh=size_wh,
                image=image,
            )


def load_detector(
    checkpoint: str | Path | None = None,
    *,
    nms: bool | None = None,
    nms_iou: float | None = None,
    assignments: Sequence[str] = (),
    device: str | None = None,
    trust: bool = False,
) -> TrainedDetector:
    """Load the detector of a checkpoint.

    Example:
        >>> detector = load_detector("runs/latest")
        >>> found = detector.predict("photo.jpg", threshold=0.7)
        >>> for name, score, box in zip(found.class_names, found.scores, found.boxes_xyxy_px):
        ...     print(name, float(score), box.tolist())

    Args:
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        nms: whether to suppress overlapping detections; None as trained.
        nms_iou: the overlap that suppresses, in [0, 1]; None as trained.
        assignments: `section.key=value`, for what may change after training, such as `data.short_side=480`.
        device: auto, cpu, cuda, cuda:N or mps; None for the best that there is.
        trust: unpickle the file even if that could run code.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        UsageError: an assignment cannot be used, or changes what the checkpoint decides.
        MachineError: the device is absent.
    """
    settings = [*assignments, *nms_assignments(nms, nms_iou)]
    path = None if checkpoint is None else Path(checkpoint)
    return TrainedDetector(*open_checkpoint(path, settings, device, trust))


def nms_assignments(nms: bool | None, nms_iou: float | None) -> list[str]:
    """Return what is not None as `section.key=value`."""
    switches = {"postprocess.nms": nms, "postprocess.nms_iou": nms_iou}
    return [f"{key}={value}" for key, value in switches.items() if value is not None]


def labels_of(names: Sequence[str], classes: Sequence[Category]) -> frozenset[int]:
    """Return the labels of classes by name.

    Raises:
        UsageError: no name is given, or a class is not among the detector's.
    """
    known = [category.name for category in classes]
    for name in names:
        if name not in known:
            raise UsageError(f"the detector knows no class '{name}'", where="--classes", hint=nearest(name, known))
    if not names:
        raise UsageError("no class is named", where="--classes", hint="known: " + ", ".join(known))
    return frozenset(label for label, name in enumerate(known) if name in names)


def _pixels(image: ImageLike) -> torch.Tensor:
    """Return an image as a (3, H, W) uint8 tensor on the CPU."""
    import torch
    from torchvision.transforms.v2 import functional

    if isinstance(image, (str, Path)):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        pixels: torch.Tensor = functional.pil_to_tensor(_loaded_rgb(image))
        return pixels
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise _unexpected(f"a numpy array {image.shape} {image.dtype}")
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise _unexpected(f"a torch tensor {tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}")
        return image.cpu()
    raise _unexpected(type(image).__name__)


def _loaded_rgb(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image, "image")
    except OSError as error:
        raise DataError(f"the image cannot be read: {error}", hint="is the file whole?") from error


def _unexpected(got: str) -> UsageError:
    return UsageError(f"got {got}; expected {_EXPECTED}", where="images")
