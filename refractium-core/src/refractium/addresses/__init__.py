"""Addresses as they are written, compared and mapped, and which of them are this machine's."""
