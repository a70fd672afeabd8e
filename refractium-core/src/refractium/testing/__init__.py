r"""For authors of protocol plugins: checks that an identifier keeps the contract.

They raise `AssertionError` with the bytes that broke a law, and need no test framework::

    from refractium.testing import assert_identifies, assert_rejects

    def test_knock() -> None:
        assert_identifies(knock, b"KNOCK\n", metadata={})
        assert_rejects(knock, b"GET / HTTP/1.1\r\n\r\n")
"""

from refractium.testing.laws import assert_identifies, assert_lawful, assert_rejects

__all__ = ["assert_identifies", "assert_lawful", "assert_rejects"]
