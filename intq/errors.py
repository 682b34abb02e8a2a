"""The one exception that a user's mistake raises: a clear sentence, never a traceback, from the command line."""

from __future__ import annotations


class IntqError(Exception):
    """What was expected, what was found, and what to do, in one sentence."""


class UnprovenError(IntqError):
    """A declared width cannot be proven to hold every value: the graph is rejected, naming the node and the remedy."""
