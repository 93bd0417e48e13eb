"""What a recorder raises, or reports to `on_error`."""

from __future__ import annotations


class SpoolError(OSError):
    """The spool cannot be read or written. `str` of it says why, and names the file."""


class SpoolFull(SpoolError):
    """The disk is full, or the spool has reached `max_bytes`."""


class LeaseLost(Exception):
    """Another sender has the lease of the spool. It goes on with the work."""
