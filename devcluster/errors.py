"""What goes wrong in a way that a person can put right."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """The devcluster cannot go on; the message says why and what to do."""
