"""Errors a user can cause or must act on. Everything else is a bug and keeps its traceback."""

from __future__ import annotations


class MCCError(Exception):
    """Base of the project's own errors; the message is one line that a user can act on."""


class UsageError(MCCError):
    """The user's input is wrong (file, field, value and what would be right). Exit code 2."""


class DataError(UsageError):
    """A dataset folder, list or image is missing or broken. Names the file. Exit code 2."""


class TrainingFault(MCCError):  # noqa: N818  a fault of the run, not of the caller
    """A run stopped for a reason of its own: a loss or a weight that is not finite. Exit code 1."""

    cause = "nan"
