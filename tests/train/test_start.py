"""Choices before the first step: steps per call, and the rates of the log."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.train import start
from bmx.train.state import state_spec
from tests.conftest import ROOT


def build(recipe, *overrides):
  config, name = recipes.load(str(ROOT / f'configs/{recipe}.py:tiny'), ['mesh.data=1', *overrides])
  return experiment.build(config, name, jax.devices()[:1])


def chosen(x, flops):
  return start.choose_dispatch(x, start.step_costs(x, state_spec(x))._replace(flops=flops))


LONG = ('steps=1000', 'every.log=500')


@pytest.mark.parametrize(
  'flops, depth',
  [
    (1e6, start.MAX_DEPTH),  # nothing but calls
    (5e8, 10),  # as many as make GROUP_FLOPS
    (4e9, start.FEW),  # enough work a call, but its temporaries are faulted in at each
    (3e11, 1),  # seconds each: a signal would wait
  ],
)
def test_short_steps_share_a_call(flops, depth):
  assert chosen(build('digits_mlp', *LONG), flops) == depth


def test_a_call_ends_at_a_log_line_and_with_the_run():
  assert chosen(build('digits_mlp', 'steps=1000', 'every.log=7'), 1e6) == 7
  assert chosen(build('digits_mlp', 'steps=3', 'every.log=500'), 1e6) == 3


def test_the_rows_of_a_call_fit_in_memory(monkeypatch):
  x = build('digits_mlp', *LONG)
  assert x.data.resident() is None  # it is augmented, so fed from the host
  batch = sum(np.prod(s.shape) * s.dtype.itemsize for s in x.data.abstract.values())
  monkeypatch.setattr(start, 'GROUP_BYTES', 5.5 * batch)
  assert chosen(x, 1e6) == 5


def test_the_config_comes_first_and_convolutions_are_not_looped():
  assert chosen(build('digits_mlp', *LONG, 'steps_per_call=3'), 1e6) == 3
  assert chosen(build('mnist_cnn', *LONG), 1e6) == 1


@pytest.mark.parametrize('every', [7, 0, 100])
def test_learning_rates_of_all_log_lines(every):
  x = build('gpt_char', 'steps=30', f'every.log={every}')
  rates = start.learning_rates(x)
  marks = {s for s in range(1, 31) if s == 30 or (every and s % every == 0)}
  assert set(rates) == marks
  for step, rate in rates.items():
    assert rate == pytest.approx(float(x.schedule(step - 1)), rel=1e-5)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -0.5])
def test_rates_are_examined_before_the_run(bad):
  """Also those between two log lines."""
  x = dataclasses.replace(build('digits_mlp'), schedule=lambda s: jnp.where(s == 7, bad, 0.1))
  with pytest.raises(InputError, match=f'learning rate of step 7 is {bad}'):
    start.learning_rates(x)
