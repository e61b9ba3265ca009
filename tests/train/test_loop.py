"""The loop: evaluation, selection, stopping, signals, what the files say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import GuardStop, InputError
from bmx.core.events import Hook
from bmx.runtime.writer import read_metrics
from bmx.tasks.common import Wrapper
from bmx.train import loop, policy, run
from bmx.train.checkpoint import Checkpoints
from bmx.train.evaluate import Evaluator
from bmx.train.rundir import RunDir
from tests.conftest import ROOT

RECIPE = str(ROOT / 'configs/digits_mlp.py:tiny')


def build(*overrides, recipe=RECIPE, devices=1):
  config, name = recipes.load(recipe, ['mesh.data=-1', *overrides])
  return experiment.build(config, name, jax.devices()[:devices])


def test_groups_end_at_every_mark():
  hooks = [Hook(7, print), Hook(5, print), Hook(6, print), Hook(0, print)]
  found = list(policy.groups(3, 40, hooks, 4))
  ends = [start + n for start, n in found]
  assert found[0][0] == 3
  assert ends[-1] == 40
  assert [s for s, _ in found[1:]] == ends[:-1]
  assert max(n for _, n in found) <= 4
  for mark in (7, 5, 6):
    assert not {m for m in range(mark, 40, mark) if m > 3} - set(ends)


@pytest.mark.parametrize('batch_size', [360, 64, 100, 7])
def test_evaluation_counts_every_example_once(batch_size):
  """A split of 360 in batches that do not divide it, against one forward pass of the whole."""
  x = build('eval.test.split=test', 'task.model.dropout=0.0')
  state = x.init()
  entry = x.evals['test']
  data = dataclasses.replace(entry.data, batch_size=batch_size)
  found = Evaluator('test', dataclasses.replace(entry, data=data), x.task, x.layout)(state)
  rows = entry.data.rows(np.arange(360), np.arange(360))
  out = x.task.model.apply({'params': state.params}, rows['image'])
  log = jax.nn.log_softmax(out)
  loss = -np.asarray(log)[np.arange(360), rows['label']].mean()
  accuracy = (np.asarray(out).argmax(-1) == rows['label']).mean()
  np.testing.assert_allclose(found['eval/test/loss'], loss, rtol=1e-5)
  np.testing.assert_allclose(found['eval/test/accuracy'], accuracy, rtol=1e-6)


def test_evaluation_on_eight_devices_equals_one():
  values = []
  for devices in (1, 8):
    x = build(devices=devices)
    values.append(Evaluator('test', x.evals['test'], x.task, x.layout)(x.init()))
  for name, value in values[0].items():
    np.testing.assert_allclose(values[1][name], value, rtol=1e-5)


def test_early_stopping_and_the_best_checkpoint(tmp_path):
  """With a learning rate that only does harm, the first evaluation is the best."""
  config, name = recipes.load(RECIPE, ['steps=200', 'every.eval=10', 'every.save=50'])
  config.data.holdout = 0.2
  config.eval.valid = {'split': 'valid'}
  config.schedule = {
    'call': 'bmx.optim.schedules:exponential',
    'peak': 1e-2,
    'every': 4,
    'factor': 4.0,
  }
  config.stop.update(metric='eval/valid/loss', patience=2)
  config.keep.metric = 'eval/valid/loss'
  x = experiment.build(config, name, jax.devices()[:1])
  summary = loop.run(x, tmp_path / 'run')
  lines = read_metrics(tmp_path / 'run/metrics.jsonl')
  seen = {line['step']: line['eval/valid/loss'] for line in lines if 'eval/valid/loss' in line}
  best = min(seen, key=seen.get)
  assert summary['stopped_early']
  assert summary['steps'] == best + 20 < 200
  assert summary['best_step'] == best
  state, step = run.restored(x, tmp_path / 'run', 'best')
  assert step == best
  value = Evaluator('valid', x.evals['valid'], x.task, x.layout)(state)['eval/valid/loss']
  assert value == seen[best]


def test_stopping_never_reads_the_test_set():
  config, _ = recipes.load(RECIPE, ['stop.metric=eval/test/loss'])
  with pytest.raises(InputError, match='test set'):
    experiment.build(config, devices=jax.devices()[:1])


def test_dispatch_changes_no_bit(tmp_path):
  """The looped program gives the same bits however many of its steps a call runs."""
  digests = []
  for depth in (2, 3, 5):
    x = build(f'steps_per_call={depth}', recipe=str(ROOT / 'configs/mnist_cnn.py:tiny'))
    digests.append(loop.run(x, tmp_path / str(depth))['state_digest'])
  assert len(set(digests)) == 1


def test_only_free_words_may_change(tmp_path):
  x = build()
  loop.run(x, tmp_path / 'run')
  RunDir(tmp_path / 'run', build('steps=40', 'every.log=10'))
  with pytest.raises(InputError, match=r'optimizer.weight_decay: 0.01 there, 0.5 given'):
    RunDir(tmp_path / 'run', build('optimizer.weight_decay=0.5'))


def test_more_steps_go_on(tmp_path, caplog):
  """A schedule of the number of steps is another one then, and the run says so."""
  loop.run(build(), tmp_path / 'run')
  config, name = recipes.load(RECIPE, ['steps=40'])
  config.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 1e-3}
  summary = json.loads((tmp_path / 'run/summary.json').read_text())
  assert summary['steps'] == 20
  assert 'SCHEDULE' not in caplog.text
  longer = build('steps=40')
  summary = loop.run(longer, tmp_path / 'run')
  assert summary['steps'] == 40
  before, now, following = (float(s(n)) for s, n in (
    (build().schedule, 19), (longer.schedule, 19), (longer.schedule, 20),
  ))  # fmt: skip
  rates = f'step 19 was {before:.3g} and is {now:.3g} now, that of the next step {following:.3g}'
  assert rates in caplog.text
  assert (tmp_path / 'run/config.20.json').exists()
  steps = [line['step'] for line in read_metrics(tmp_path / 'run/metrics.jsonl')]
  assert steps == sorted(steps)


@dataclasses.dataclass(frozen=True)
class NaNTask(Wrapper):
  """A task whose gradient is NaN for one parameter, always."""

  def loss(self, variables, batch, noise, *, train):
    loss = self.inner.loss(variables, batch, noise, train=train)
    bad = variables['params']['dense_1']['kernel'].sum()
    return loss._replace(sum=loss.sum + 0.0 * jnp.sqrt(bad - bad))


def test_guard_names_step_examples_and_parameter(tmp_path):
  from bmx.train.gradients import Gradient

  x = build('guard.patience=3')
  task = NaNTask(x.task)
  x = dataclasses.replace(x, task=task, grad_fn=Gradient(task), evals={})
  with pytest.raises(GuardStop) as stop:
    loop.run(x, tmp_path / 'run')
  assert stop.value.code == 76
  assert 'at step 2;' in str(stop.value)
  assert str(x.data.indices(2)[0].tolist()) in str(stop.value)
  assert 'dense_1/kernel' in str(stop.value)
  # The steps before are not lost.
  assert Checkpoints(tmp_path / 'run/checkpoints').newest_valid() == 3


@dataclasses.dataclass(frozen=True)
class SometimesWithoutTarget(Wrapper):
  """A task whose loss counts nothing in the first steps."""

  steps: int = 0

  def loss(self, variables, batch, noise, *, train):
    counts = (noise.step >= self.steps) | (not train)
    weights = jnp.where(counts, batch['weights'], 0.0)
    return self.inner.loss(variables, {**batch, 'weights': weights}, noise, train=train)


@pytest.mark.parametrize('without', [0, 12])
def test_steps_without_a_target_are_counted_in_one_warning_a_line(tmp_path, caplog, without):
  from bmx.train.gradients import Gradient

  x = build('every.log=10')
  task = SometimesWithoutTarget(x.task, without)
  x = dataclasses.replace(x, task=task, grad_fn=Gradient(task), evals={})
  loop.run(x, tmp_path / 'run')
  warned = [r.getMessage() for r in caplog.records if 'NO TARGET' in r.getMessage()]
  expected = ['in 10 of the 10 steps to step 10', 'in 2 of the 10 steps to step 20']
  assert len(warned) == (len(expected) if without else 0)
  assert all(text in line for text, line in zip(expected, warned, strict=False))
  lines = list(read_metrics(tmp_path / 'run/metrics.jsonl'))
  assert [('loss' in line) for line in lines] == [not without, True]
  assert not any('without_target' in line for line in lines)
