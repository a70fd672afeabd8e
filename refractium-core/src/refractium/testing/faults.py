"""The faults of a plugin in a test: an error instead of a count."""

from __future__ import annotations

from refractium.guard.faults import Faults, is_interrupt, text_of


class FaultsOfTest(Faults):
    """Faults that become an `AssertionError`."""

    def __init__(self) -> None:
        super().__init__()
        self._first: AssertionError | None = None

    def note(self, what: str, given: object, error: BaseException, effect: str) -> None:
        del given, effect
        if is_interrupt(error):
            raise error
        self[what] += 1
        if self._first is None:
            self._first = AssertionError(f"{what} failed: {text_of(error)}")
            self._first.__cause__ = error

    def raise_first(self, where: str = "") -> None:
        """Raise the first fault, if there is one.

        Args:
            where: the place of the fault, for the end of the message.
        """
        if self._first is not None:
            raise AssertionError(f"{self._first}{where}") from self._first.__cause__
