"""Work that goes on beside training, in a thread: a checkpoint's files are written while the next steps are made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class BackgroundTask(Generic[T]):
    """A function that runs in a thread of its own, from now on.

    The process must not end before it has, as a half-ended thread in C++ code would abort it: see `wait`.

    Args:
        work: does not touch anything that changes meanwhile.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: list[T] = []
        self._error: BaseException | None = None
        # Not the thread's own state: one that a signal stops from being joined counts as ended (in Python 3.12 still).
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="save checkpoint")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the function has ended."""
        return self._has_ended.is_set()

    def wait(self) -> None:
        """Wait for the end; a signal's error may come between, and the waiting be taken up again."""
        self._has_ended.wait()

    def result(self) -> T:
        """Wait for the end, and return or raise what the function did."""
        self.wait()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001 (it is raised where it can be told)
            self._error = error
        finally:
            self._has_ended.set()


def copy_to_host(content: Any) -> Any:
    """Return nested dictionaries and lists with copies of their tensors on the CPU.

    Tensors that are one in memory are one in the copy, so that its file is no larger.
    """
    return _copy(content, {})


def _copy(content: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(content, Tensor):
        place = (content.device, content.data_ptr(), content.dtype, content.shape, content.stride())
        if content.numel() == 0 or place not in copies:
            copies[place] = content.detach().to("cpu", copy=True)
        return copies[place]
    if isinstance(content, Mapping):
        return {key: _copy(value, copies) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_copy(value, copies) for value in content)
    return content
