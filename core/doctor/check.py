"""What a look at one part of the machine found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from core.errors import DataError, DedetrError, MachineError

Status = Literal["ok", "warn", "fail"]

_BUG_HINT = "install the package again, or report it if dedetr is at fault"


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at, such as "torch".
        status: ok; warn: works, but something is missing or slow; fail: some command cannot work.
        value: what was found, one line.
        hint: what to do, where the status is not ok.
        about_data: whether it says something of the data set, not of the machine.
    """

    name: str
    status: Status
    value: str
    hint: str | None = None
    about_data: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All lines, in the order of their being looked at."""

    checks: tuple[Check, ...]

    def having(self, status: Status) -> list[Check]:
        """Return the checks of one status."""
        return [check for check in self.checks if check.status == status]

    def error(self) -> DedetrError | None:
        """Return what the command ends with: of the machine, of the data where only these fail, or None."""
        failed = self.having("fail")
        if not failed:
            return None
        kind = DataError if all(check.about_data for check in failed) else MachineError
        names = ", ".join(check.name for check in failed)
        return kind(f"{len(failed)} of {len(self.checks)} checks failed: {names}", hint=failed[0].hint)


def guarded(
    name: str, look: Callable[[], Iterable[Check]], *, hint: str = _BUG_HINT, about_data: bool = False
) -> list[Check]:
    """Return the checks that a look makes; whatever it raises becomes a failed one.

    Args:
        name: of the failed one.
        look: makes the checks.
        hint: of the failed one, where the error has none of its own.
        about_data: whether the failed one says something of the data set.
    """
    checks: list[Check] = []
    try:
        checks.extend(look())
    except KeyboardInterrupt:
        raise
    except DedetrError as error:
        checks.append(Check(name, "fail", str(error), error.hint or hint, about_data))
    except BaseException as error:  # noqa: BLE001 (a broken package may raise anything: extensions in Rust do)
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        checks.append(Check(name, "fail", text, hint, about_data))
    return checks
