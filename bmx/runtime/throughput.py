"""How fast a run goes: completed steps over wall time, waiting for data apart."""

import time
from collections.abc import Callable

SHORTEST = 0.005  # seconds: threads tell of the end of a dispatch no more exactly than this


class Throughput:
  """Rates between log lines.

  Args:
    steps: the step at which the run ends, for the time left.
    units: what one step consumes, by name: {'tokens': 768} gives 'tokens_per_second'.
    flops: FLOPs of one step, all devices, as `core.costs` counts them.
    peak: FLOP/s of all devices together; 0 where unknown, and then there is no 'mfu'.
    now: the time in seconds, so that a test can hold the watch.
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
    """A window opens: `step` steps are done."""
    self.start, self.step, self.paused, self.waits = self.now(), step, 0.0, []

  def wait(self, seconds: float, step: int) -> None:
    """The loop stood still for the data of the steps up to `step`. A window is closed late, when
    the loop already waits for steps of the next one."""
    self.waits.append((step, seconds))

  def pause(self, seconds: float) -> None:
    """Time that is not training: an evaluation, the wait for a checkpoint."""
    self.paused += seconds

  def close(self, step: int, at: float | None = None) -> dict[str, float]:
    """The rates of the window that ended, `at` a time or now, with `step` completed steps.

    {} where it was too short to be timed; then it goes on, and is part of the next.
    """
    at = self.now() if at is None else at
    seconds = at - self.start - self.paused
    if seconds < SHORTEST:
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
    """Seconds until the last step at the rate of the last window."""
    return (self.steps - step) / self.rate if self.rate else 0.0
