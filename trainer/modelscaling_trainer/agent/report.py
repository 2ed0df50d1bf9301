"""The termination message: what Kubernetes keeps of a container's end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.protocol import TerminationReport

_MAX_BYTES = 4096
"""What Kubernetes keeps; the rest it would cut off, and with it the end of the JSON."""

_log = logging.getLogger(__name__)


def render_report(report: TerminationReport) -> bytes:
    """Return the report as JSON of at most 4096 bytes, with its message cut to what fits."""
    rendered = report.model_dump_json().encode()
    failure = report.failure
    if len(rendered) <= _MAX_BYTES or failure is None:
        return rendered
    # The end of a message has the error itself; escapes make a character up to six bytes long.
    message = failure.message
    while len(rendered) > _MAX_BYTES and message:
        excess = len(rendered) - _MAX_BYTES
        message = message[max(1, excess // 6) :]
        short = failure.model_copy(update={"message": f"…{message}"})
        rendered = report.model_copy(update={"failure": short}).model_dump_json().encode()
    return rendered


def write_report(file: Path, report: TerminationReport) -> None:
    """Leave the report for the operator; without the file (outside Kubernetes) only a log line."""
    try:
        file.write_bytes(render_report(report))
    except OSError as error:
        _log.warning(
            "the termination message was not written",
            extra={"file": str(file), "error": str(error)},
        )
