"""One invocation on its way to its file: every check and case is on disk as soon as it is finished."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from suite.bench.recorded import of_device, recorded_times
from suite.bench.results import Case, Check, Device, KernelBench
from suite.environment import describe_environment
from suite.errors import StoreError


class Recording:
    """Gathers what a benchmark yields; `bench` is what is known so far."""

    def __init__(
        self, folder: Path, *, kind: Literal["kernels", "kernel_errors"], command: str, seed: int, official: str
    ) -> None:
        """Makes the folder, before anything is measured in vain.

        Raises:
            StoreError: it cannot be made.
            UsageError: `official` is no file of recorded times.
        """
        self._recorded = recorded_times(official)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder {folder} cannot be made: {error.strerror}. Choose another --out") from error
        now = datetime.now(UTC)
        self.path = folder / f"{kind.replace('_', '-')}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}.json"
        self.bench: KernelBench | None = None
        """None until the device is known."""
        self._kind, self._command, self._seed = kind, command, seed
        self._started_at, self._started = now.isoformat(timespec="seconds"), time.monotonic()

    def begin(self, device: Device) -> None:
        """The device that everything else is of."""
        self.bench = KernelBench(
            kind=self._kind,
            command=self._command,
            started_at=self._started_at,
            duration_seconds=0.0,
            is_complete=False,
            seed=self._seed,
            environment=describe_environment(device.kind),
            device=device,
            anchors=of_device(self._recorded, device.name),
        )

    def add(self, seen: Check | Case) -> None:
        """Puts it into the file.

        Raises:
            StoreError: it cannot be written.
        """
        assert self.bench is not None
        if isinstance(seen, Check):
            self._update(checks=[*self.bench.checks, seen])
        else:
            self._update(cases=[*self.bench.cases, seen])

    def finish(self) -> None:
        """Nothing is missing. Raises StoreError if that cannot be written."""
        self._update(is_complete=True)

    def _update(self, **changes: object) -> None:
        assert self.bench is not None
        seconds = round(time.monotonic() - self._started, 3)
        self.bench = self.bench.model_copy(update=changes | {"duration_seconds": seconds})
        self.bench.save(self.path)
