"""JSON log lines on standard output: one object a line, spelt alike whoever logs it: we, uvicorn or another library.

Lines carry request ids, and never a user's history or the ids of users and items.
"""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import orjson
import structlog
from structlog.typing import Processor


def configure(level: str) -> None:
    """Send all log lines of `level` and above to standard output."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_line)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # As text, which the standard library's handlers take.
                structlog.processors.JSONRenderer(
                    serializer=lambda content, default: _line(content, default).decode()
                ),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)


def _line(content: dict[str, Any], default: Callable[[Any], Any]) -> bytes:
    try:
        return orjson.dumps(content, default)
    except orjson.JSONEncodeError:
        # A path that is no UTF-8, or a number of more than 64 bits: whoever logs it has trouble enough.
        return json.dumps(content, default=default, separators=(",", ":")).encode()
