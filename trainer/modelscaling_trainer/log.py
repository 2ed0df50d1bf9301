"""Logs of agent and workers: one line a record on standard error, fields as `key=value`."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

LEVEL_VARIABLE = "MODELSCALING_LOG_LEVEL"
"""Environment variable with the least severe level that is logged; INFO without it."""

_STANDARD_FIELDS = frozenset(
    logging.LogRecord("", logging.INFO, "", 0, "", None, None).__dict__
) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """Time, level, message, then the fields that the record was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; an exception's traceback follows as one field."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        rest = "".join(f" {key}={_quote(value)}" for key, value in fields.items())
        message = record.getMessage().replace("\n", "\\n")
        return f"{time} {record.levelname} {message}{rest}"


def configure_logging() -> None:
    """Send all records of this process to standard error; called once, by a `main`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    level = os.environ.get(LEVEL_VARIABLE, "INFO").upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _quote(value: object) -> str:
    """Return a value such that it can be told where it ends."""
    text = str(value)
    return text if text and not set(text) & set(' \n\t"=') else json.dumps(text, ensure_ascii=False)
