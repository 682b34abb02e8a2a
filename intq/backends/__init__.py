"""Runners of integer graphs that must agree by ``array_equal``; :mod:`intq.backends.reference` decides."""
