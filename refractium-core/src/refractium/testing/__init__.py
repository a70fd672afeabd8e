r"""Test functions for plugins. This package works with any test framework, and without a test framework.

Some functions assert that a protocol keeps the contract. They raise `AssertionError` with the bytes for which
the protocol broke a law::

    from refractium.testing import assert_identifies, assert_rejects

    def test_knock() -> None:
        assert_identifies(knock, b"KNOCK\n", metadata={})
        assert_rejects(knock, b"GET / HTTP/1.1\r\n\r\n")

`run_hook` runs one session through a packet hook in this thread, and returns the hook::

    from refractium.testing import run_hook

    def test_count() -> None:
        hook = run_hook(CountBytes, inbound=[b"KNOCK\n"], outbound=[b"WHO IS THERE\n"])
        assert hook.total == 19
"""

from refractium.testing.hooks import run_hook
from refractium.testing.laws import assert_identifies, assert_lawful, assert_rejects

__all__ = ["assert_identifies", "assert_lawful", "assert_rejects", "run_hook"]
