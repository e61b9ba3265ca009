"""Throughput of a run: completed steps over wall time, with the time spent waiting for data."""

import time
from collections.abc import Callable

import jax

MIN_WINDOW = 0.005  # seconds: the resolution with which threads see the end of a dispatch


class Throughput:
  """Rates between log lines.

  Args:
    steps: the step at which the run ends, for the time left.
    units: what one step consumes, by name: {'tokens': 768} gives 'tokens_per_second'.
    flops: FLOPs of one step, all devices, as `core.costs` counts them.
    peak: FLOP/s of all devices together; 0 if unknown: log lines then lack 'mfu'.
    now: () -> the time in seconds; a test passes its own.
  """

  def __init__(
    self,
    steps: int,
    units: dict[str, int],
    flops: float = 0,
    peak: float = 0,
    now: Callable[[], float] = time.perf_counter,
  ):
    self.steps, self.units, self.flops, self.peak, self.now = steps, units, flops, peak, now
    self.start, self.step, self.paused = now(), 0, 0.0
    self.waits: list[tuple[int, float]] = []  # (step that waited, seconds)
    self.rate = 0.0  # steps per second of the last window

  def begin(self, step: int) -> None:
    """Opens a window after `step` completed steps."""
    self.start, self.step, self.paused, self.waits = self.now(), step, 0.0, []

  def wait(self, seconds: float, step: int) -> None:
    """Records that the loop waited for the data of the steps up to `step`.

    A window is closed late, when the loop already waits for steps of the next one.
    """
    self.waits.append((step, seconds))

  def pause(self, seconds: float) -> None:
    """Excludes time that is not training: an evaluation, the wait for a checkpoint."""
    self.paused += seconds

  def close(self, step: int, at: float | None = None) -> dict[str, float]:
    """Closes the window and opens the next.

    Args:
      step: completed steps at the end of the window.
      at: time in seconds at which the window ended; None is now.

    Returns:
      Rates by name; {} if the window is too short to be timed: it then becomes part of the next.
    """
    at = self.now() if at is None else at
    seconds = at - self.start - self.paused
    if seconds < MIN_WINDOW:
      return {}
    done = max(step - self.step, 1)
    self.rate = done / seconds
    waited = sum(s for number, s in self.waits if number <= step)
    line = {
      'steps_per_second': self.rate,
      'step_seconds': seconds / done,
      'data_wait_fraction': min(waited / seconds, 1.0),
    }
    line |= {f'{k}_per_second': v * self.rate for k, v in self.units.items()}
    if self.peak and self.flops:
      line['mfu'] = self.flops * self.rate / self.peak
    self.start, self.step, self.paused = at, step, 0.0
    self.waits = [(number, s) for number, s in self.waits if number > step]
    return line

  def left(self, step: int) -> float:
    """Returns the seconds until the last step at the rate of the last window."""
    return (self.steps - step) / self.rate if self.rate else 0.0


def peak_memory_bytes() -> int | None:
  """Returns the peak memory of one device of this process; None on a device without a counter."""
  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
