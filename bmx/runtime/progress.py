"""How far a run is, as text: steps, percentage, epoch, time left."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Progress:
  """Positions of a run.

  Attributes:
    steps: of the run.
    epoch: steps of one pass over the training data.
  """

  steps: int
  epoch: float

  def position(self, step: int) -> str:
    """Returns the beginning of a log line.

    >>> Progress(2000, 1000.0).position(500)
    'step   500/2,000   25 %  epoch 0.50'
    >>> Progress(2000, 100_000.0).position(2000)
    'step 2,000/2,000  100 %  epoch 0.02'
    """
    last = f'{self.steps:,}'
    share, epoch = int(100 * step / self.steps), step / self.epoch
    passes = f'{epoch:.2f}' if epoch >= 0.1 or not epoch else f'{epoch:.1g}'
    return f'step {step:>{len(last)},}/{last}  {share:3d} %  epoch {passes}'


def share(done: int, total: int, seconds: float) -> str:
  """Returns how many of `total` are done after some seconds, and the time left.

  >>> share(5000, 20_000, 12.0)
  '5,000 of 20,000   25 %  0:36 left'
  """
  left = seconds * (total - done) / done
  return f'{done:,} of {total:,}  {int(100 * done / total):3d} %  {clock(left)} left'


def clock(seconds: float) -> str:
  """Returns a time as minutes and seconds, or hours, minutes and seconds.

  >>> clock(62.4), clock(7325)
  ('1:02', '2:02:05')
  """
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes}:{rest:02d}'
