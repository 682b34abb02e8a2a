"""The operations of ATen that intq takes, one function each: what it is in the operations of the float graph.

To take another: write ``f(build, **arguments named as in the operation's schema)`` under ``@takes(name)``. An in-place
variant (``relu_``) arrives as the operation itself. Raise :class:`Unsupported` with the reason for a form that has no
integer meaning; capture adds where it is.
"""

from intq.aten import contractions, frames, movement, pointwise, pooling, text  # noqa: F401 (each registers what it takes)
from intq.aten.build import TAKES, Build, Unsupported

__all__ = ["TAKES", "Build", "Unsupported"]
