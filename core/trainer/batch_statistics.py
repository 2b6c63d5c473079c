"""Running statistics of batch norm: they change in the forward pass already, before a step is known to be good."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchStatistics:
    """The running statistics that a model updates while it trains; none where batch norm is frozen.

    Args:
        model: on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self) -> None:
        """Remember them as they are."""
        buffers = [buffer for module in self._training() for buffer in module.buffers()]
        self._kept = [(buffer, buffer.clone()) for buffer in buffers]

    def put_back(self) -> None:
        """Make them what they were when `keep` was called."""
        for buffer, value in self._kept:
            buffer.copy_(value)

    def means_and_variances(self) -> Iterator[Tensor]:
        """Yield those that are numbers of images, and so differ from process to process."""
        for module in self._training():
            yield from (tensor for tensor in (module.running_mean, module.running_var) if tensor is not None)

    def _training(self) -> Iterator[_BatchNorm]:
        for module in self._model.modules():
            if isinstance(module, _BatchNorm) and module.training:
                yield module
