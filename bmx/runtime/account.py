"""Where the time of a run went, over all its starts: the parts sum to the wall time."""

import time
from collections.abc import Callable, Mapping

PARTS = ('start', 'compile', 'train', 'evaluate', 'save', 'other')


class Account:
  """Wall time by part: start (imports, data), compile, train, evaluate, save, other (hooks, logs).

  Time that no call of `add` names is 'train': the loop waits for the devices.

  Args:
    began: time at which this start began, in seconds of `now`.
    before: seconds by part of the earlier starts, up to the checkpoint.
    now: () -> the time in seconds; a test passes its own.
  """

  def __init__(
    self,
    began: float,
    before: Mapping[str, float] | None = None,
    now: Callable[[], float] = time.perf_counter,
  ):
    self.began, self.before, self.now = began, dict(before or {}), now
    self.own: dict[str, float] = {}

  def add(self, part: str, seconds: float) -> None:
    """Counts seconds of this start in a part."""
    self.own[part] = self.own.get(part, 0.0) + seconds

  def ready(self) -> None:
    """Counts the rest of the time until now as the start."""
    self.add('start', self._rest())

  def _rest(self) -> float:
    return self.now() - self.began - sum(self.own.values())

  def parts(self) -> dict[str, float]:
    """Returns the seconds of every part, rounded to milliseconds.

    >>> clock = iter([4.0, 10.0])
    >>> account = Account(0.0, {'train': 2.0}, lambda: next(clock))
    >>> account.add('compile', 3.0)
    >>> account.ready()
    >>> account.add('save', 1.0)
    >>> account.parts()
    {'start': 1.0, 'compile': 3.0, 'train': 7.0, 'evaluate': 0.0, 'save': 1.0, 'other': 0.0}
    """
    own = self.own | {'train': self._rest()}
    return {k: round(self.before.get(k, 0.0) + own.get(k, 0.0), 3) for k in PARTS}
