"""Predictions while they are made: lines of progress."""

import logging

import numpy as np

from bmx.modes import predict


def test_progress_of_long_work(caplog):
  """A line after each 10 s of a clock that advances 6 s a batch; none after the last one."""
  clock = iter(np.arange(0.0, 1e3, 6.0))
  times = []

  def now():
    times.append(next(clock))
    return times[-1]

  parts = [{'prediction': np.zeros(50)} for _ in range(4)]
  with caplog.at_level(logging.INFO, 'bmx'):
    assert len(list(predict.watched(iter(parts), 200, now))) == 4
  lines = [record.getMessage() for record in caplog.records]
  assert lines == ['predicted 100 of 200   50 %  0:18 left']
