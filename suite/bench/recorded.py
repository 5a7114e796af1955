"""Times of peers as they were once measured, for machines that have the device but not the peers' packages."""

from __future__ import annotations

from pathlib import Path

import pydantic

from suite.bench.results import Anchors
from suite.errors import UsageError

BUILT_IN = "built-in"

_FOLDER = Path(__file__).parent / "anchors"


def recorded_times(official: str) -> list[Anchors]:
    """All that was recorded: in the suite's own files ("built-in"), or in a file like them.

    Raises:
        UsageError: the file cannot be read or is no file of recorded times.
    """
    paths = sorted(_FOLDER.glob("*.json")) if official == BUILT_IN else [Path(official)]
    return [_read(path) for path in paths]


def of_device(recorded: list[Anchors], device_name: str) -> Anchors | None:
    """What may be compared with on a device: only times that were taken on one of the same name."""
    return next((anchors for anchors in recorded if device_name in anchors.devices), None)


def _read(path: Path) -> Anchors:
    try:
        return Anchors.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The recorded times {path} cannot be read: {error.strerror}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path} holds no recorded times: {place}: {first['msg']}") from None
