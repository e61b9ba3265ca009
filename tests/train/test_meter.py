"""What a log line says of speed, in whole runs: where time went, and what was computed."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.runtime.writer import read_metrics
from bmx.train import loop, start
from bmx.train.state import state_spec
from tests.conftest import ROOT

SLOW = 0.2  # seconds to read the rows of a step


@dataclasses.dataclass(frozen=True)
class Sleepy:
  """`inner`, read from a slow disk."""

  inner: Any

  def __getattr__(self, name: str) -> Any:
    return getattr(self.inner, name)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Any:
    time.sleep(SLOW)
    return self.inner.rows(indices, positions)

  def resident(self) -> None:
    return None


def digits(*overrides):
  words = ['mesh.data=1', 'steps_per_call=1', 'every.log=10', 'steps=20', *overrides]
  config, _ = recipes.load(str(ROOT / 'configs/digits_mlp.py:tiny'), words)
  return experiment.build(config, 'digits', jax.devices()[:1])


def lines(x, path):
  loop.run(x, path)
  return [line for line in read_metrics(path / 'metrics.jsonl') if 'loss' in line]


def test_a_slow_source_is_waiting_and_not_computing(tmp_path):
  x = digits()
  line = lines(dataclasses.replace(x, data=Sleepy(x.data)), tmp_path / 'run')[-1]
  # Up to two threads read ahead: a step takes half of a reading, and what is computed far less.
  waited = line['data_wait_fraction'] * line['step_seconds']
  assert waited > 0.2 * SLOW
  assert line['data_wait_fraction'] > 0.5


def test_every_line_says_how_fast(tmp_path):
  """Where the window is long enough to be timed at all."""
  x = digits('task.model.widths=(1024,1024)', 'batch_size=1024')
  for line in lines(x, tmp_path / 'run'):
    assert line['step_seconds'] == pytest.approx(1 / line['steps_per_second'])
    assert line['examples_per_second'] == pytest.approx(1024 / line['step_seconds'])
    assert 0 <= line['data_wait_fraction'] <= 1


def test_the_work_of_a_known_product():
  """One matrix product of 64 × 10 for each of B examples, forward and for the kernel's gradient.

  The input needs no gradient.
  """
  x = digits('task.model.widths=()', 'task.model.activations=("relu",)')
  plan = state_spec(x)
  batch = x.data.batch_size
  assert start.step_costs(x, plan).flops == 2 * 2 * batch * 64 * 10


def test_the_work_of_a_language_model_is_as_palm_counts_it():
  """6 N + 12 L d T a token: N all that is multiplied, the padded head included (appendix B)."""
  config, _ = recipes.load(str(ROOT / 'configs/gpt2_124m.py'), ['batch_size=16'])
  x = experiment.build(config, devices=jax.devices()[:1], read=False)
  plan = state_spec(x)
  depth, width, length = 12, 768, 1024
  multiplied = depth * 12 * width**2 + 50304 * width
  each = 6 * multiplied + 12 * depth * width * length
  assert start.step_costs(x, plan).flops == 16 * length * each


def test_recomputation_is_not_counted():
  words = ['task.model.remat=none', 'task.model.remat=full']
  counts = []
  for word in words:
    config, _ = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), [word, 'mesh.data=1'])
    x = experiment.build(config, devices=jax.devices()[:1])
    counts.append(start.step_costs(x, state_spec(x)).flops)
  assert counts[0] == counts[1]
