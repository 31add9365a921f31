"""What training took so far, and when its time is up."""

from __future__ import annotations

from time import process_time


class Clock:
    """The time that a run has spent, interrupted parts included, and the caps on it.

    Args:
        max_seconds: of training and validation together; 0: no cap.
        max_processor_seconds: of this process and its threads; 0: no cap.

    Attributes:
        seconds: spent in "training" and "validation".
        processor_seconds: of this process and its threads, over the same.
    """

    def __init__(self, max_seconds: float, max_processor_seconds: float):
        self.max_seconds, self.max_processor_seconds = max_seconds, max_processor_seconds
        self.seconds = {"training": 0.0, "validation": 0.0}
        self.processor_seconds = 0.0
        self._mark = 0.0

    def start(self) -> None:
        """Counts the processor's time from now on."""
        self._mark = process_time()

    def is_up(self) -> bool:
        """Counts the processor's time up to now; returns whether a cap is reached."""
        now = process_time()
        self.processor_seconds += now - self._mark
        self._mark = now
        return 0 < self.max_seconds <= sum(self.seconds.values()) or self._processor_is_up()

    def _processor_is_up(self) -> bool:
        return 0 < self.max_processor_seconds <= self.processor_seconds

    @property
    def cap(self) -> str:
        """The cap that was reached, as the user set it."""
        if self._processor_is_up():
            return f"max_processor_seconds={self.max_processor_seconds:g}"
        return f"max_seconds={self.max_seconds:g}"
