"""Hooks at a step: their order, what a failure or a kill between two of them leaves, sections."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.events import Hook, Selection
from bmx.runtime.report import Section
from bmx.runtime.writer import TIMES, read_metrics
from bmx.train import hooks, loop, policy, summary
from bmx.train.checkpoint import Checkpoints
from bmx.train.manifest import MANIFEST
from bmx.train.run import make_run
from bmx.train.rundir import RunDir
from tests.conftest import CACHE, FLAGS, ROOT

RECIPE = str(ROOT / 'configs/digits_mlp.py:tiny')


def build(*overrides, **words):
  """A tiny run whose validation loss is followed."""
  config, name = recipes.load(RECIPE, ['mesh.data=1', 'data.holdout=0.2', *overrides])
  config.eval.valid = {'split': 'valid'}
  config.stop.update(metric='eval/valid/loss', patience=1000)
  config.keep.metric = 'eval/valid/loss'
  for word, value in words.items():
    config[word].update(value)
  return experiment.build(config, name, jax.devices()[:1])


class Norm:
  """A user's hook: the norm of all parameters."""

  def __init__(self, scale: float = 1.0):
    self.scale = scale

  def __call__(self, event):
    total = sum(np.square(np.asarray(v)).sum() for v in tree.named(event.state.params).values())
    event.write({'norm': self.scale * np.sqrt(total)})
    return Section('Norm', f'<p>step {event.step}</p>')


def lines(workdir):
  found = read_metrics(workdir / 'metrics.jsonl')
  return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


# Kills in one run: at a step; before or after the call of a hook, that is before it is recorded;
# the save that has been started is on disk, or whatever of it is.
KILLS = [
  (10, 'log', 'before', 'on disk'),
  (10, 'evaluate', 'after', 'on disk'),
  (10, 'keep', 'after', 'started'),
  (20, 'save', 'before', 'on disk'),
  (20, 'save', 'after', 'started'),
  (20, 'save', 'after', 'on disk'),
  (40, 'evaluate', 'after', 'on disk'),
  (40, 'decide', 'before', 'on disk'),
  (60, 'decide', 'after', 'on disk'),
  (60, 'hooks.norm', 'before', 'on disk'),
  (80, 'hooks.norm', 'after', 'started'),
  (80, 'hooks.norm', 'after', 'on disk'),
]
STEPS = ['steps=90', 'every.log=10', 'every.eval=10', 'every.save=20']


def train_and_die(workdir, cache, step, name, when, save):
  """Trains in a process of its own, which kills itself where it is told."""
  jax.config.update('jax_compilation_cache_dir', cache)
  x = build(*STEPS, hooks={'norm': {'call': f'{__name__}:Norm', 'every': 20}})

  def killing(hook):
    def die(event):
      if save == 'on disk':
        event.run.checkpoints.wait()
      os.kill(os.getpid(), signal.SIGKILL)

    def call(event):
      if event.step == step and when == 'before':
        die(event)
      result = hook.call(event)
      if event.step == step:
        die(event)
      return result

    return dataclasses.replace(hook, call=call) if hook.name == name else hook

  rundir = RunDir(workdir, x)
  run = make_run(x, rundir, [killing(hook) for hook in hooks.in_order(x, {})])
  summary.finish(loop.train(run))
  run.close()


def train_each(jobs):
  """Trains in a process for each (workdir, cache, *kill) -> their exit codes.

  They are forks of this process, which has imported everything and started nothing.
  """
  codes = []
  for job in jobs:
    if not (pid := os.fork()):
      train_and_die(*job)
      os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
  return codes


def test_a_kill_between_any_two_hooks_changes_nothing(tmp_path):
  folder, none = lambda name: [str(tmp_path / name), str(CACHE / 'hooks')], (0, '', '', '')
  jobs = [*folder('straight'), *none], *([*folder('killed'), *kill] for kill in [*KILLS, none])
  code = 'import json, tests.train.test_hooks as t; print(t.train_each(json.loads(input())))'
  env = {**os.environ, 'XLA_FLAGS': FLAGS.replace('count=8', 'count=1'),
         'OPENBLAS_NUM_THREADS': '1'}  # fmt: skip
  done = subprocess.run(
    [sys.executable, '-c', code], input=json.dumps(jobs), cwd=ROOT, env=env, text=True,
    capture_output=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  codes = json.loads(done.stdout)
  assert codes == [0, *[-signal.SIGKILL] * len(KILLS), 0], done.stderr
  straight, killed = (
    json.loads((tmp_path / name / 'summary.json').read_text()) for name in ('straight', 'killed')
  )
  for key in ('state_digest', 'metrics', 'best_step', 'steps', 'stopped_early'):
    assert killed[key] == straight[key]
  assert lines(tmp_path / 'killed') == lines(tmp_path / 'straight')
  assert [line['step'] for line in lines(tmp_path / 'killed') if 'norm' in line] == [
    20, 40, 60, 80, 90,
  ]  # fmt: skip


def test_hooks_run_in_the_fixed_order(tmp_path):
  """A due save has been started when code of the user runs, and no step is saved twice."""
  x, seen, saved = build('every.save=10'), [], []

  def spy(hook):
    def call(event):
      seen.append((event.step, hook.name, event.run.checkpoints.saved))
      return hook.call(event)

    return dataclasses.replace(hook, call=call)

  more = {'mine': Hook(10, lambda event: saved.append(int(event.state.step)))}
  run = make_run(x, RunDir(tmp_path / 'run', x), [spy(h) for h in hooks.in_order(x, more)])
  saves = []
  save = run.checkpoints.save
  run.checkpoints.save = lambda state, loop, step: (saves.append(step), save(state, loop, step))
  loop.train(run)
  run.close()
  names = [name for step, name, _ in seen if step == 10]
  assert names == [
    'log',
    'save',
    'examine',
    'evaluate',
    'decide',
    'keep',
    'hooks.mine',
    'report',
    'progress',
  ]
  assert {saved for step, name, saved in seen if step == 20 and name == 'evaluate'} == {20}
  assert saves == [10, 20]
  assert saved == [10, 20]


def fail(rows):
  raise ValueError('a metric of the user')


def test_a_metric_that_raises_leaves_the_due_checkpoint(tmp_path):
  x = build()
  bad = dataclasses.replace(x.evals['valid'], metrics={'bad': fail})
  workdir = tmp_path / 'run'
  with pytest.raises(ValueError, match='a metric of the user'):
    loop.run(
      dataclasses.replace(
        x, evals={'valid': bad}, every=dataclasses.replace(x.every, eval=0, save=0)
      ),
      workdir,
    )
  assert Checkpoints(workdir / 'checkpoints').steps() == [20]
  # Without the metric, the remaining hooks of step 20 run, and nothing is trained again.
  found = loop.run(dataclasses.replace(x, every=dataclasses.replace(x.every, eval=0)), workdir)
  assert found['best_step'] == 20
  assert found['steps'] == 20
  assert [line['step'] for line in lines(workdir) if 'eval/valid/loss' in line] == [20]


def test_a_hook_that_raises_loses_no_step(tmp_path):
  """No save is due: the state is saved as it was before the hook, whose lines come once."""
  x, workdir = build('every.eval=8', 'every.save=0'), tmp_path / 'run'

  def write(event):
    event.write({'mine': event.step})
    raise ValueError(f'at {event.step}')

  with pytest.raises(ValueError, match='at 12'):
    loop.run(x, workdir, {'mine': Hook(12, write)})
  assert Checkpoints(workdir / 'checkpoints').newest_valid() == 12
  found = loop.run(x, workdir, {'mine': Hook(12, lambda event: event.write({'mine': event.step}))})
  assert found['state_digest'] == loop.run(x, tmp_path / 'straight')['state_digest']
  assert [line['mine'] for line in lines(workdir) if 'mine' in line] == [12, 20]


def test_hooks_of_the_config_and_of_code(tmp_path):
  words = {'norm': {'call': f'{__name__}:Norm', 'every': 8, 'scale': 0.0}}
  x = build(hooks=words)
  found = loop.run(x, tmp_path / 'run', {'double': Hook(0, Norm(2.0))})
  norms = {line['step']: line['norm'] for line in lines(tmp_path / 'run') if 'norm' in line}
  assert [norms[8], norms[16]] == [0, 0]
  assert norms[20] == found['metrics']['norm'] > 1
  page = (tmp_path / 'run/report.html').read_text()
  assert page.count('<h2>Norm</h2><p>step 20</p>') == 2
  # `hooks` may differ in a resumed run.
  RunDir(tmp_path / 'run', build(hooks={'norm': words['norm'] | {'every': 2}}))


def test_the_hook_of_the_page(tmp_path):
  text = (ROOT / 'docs/own_parts.md').read_text()
  block = next(b for b in text.split('```diff\n') if b.startswith('+class Norm')).split('```')[0]
  lines = [line.removeprefix('+') for line in block.splitlines()]
  scope = {'optax': optax, 'Section': Section}
  exec('\n'.join(line for line in lines if not line.startswith('  c.')), scope)
  found = loop.run(build(), tmp_path / 'run', {'norm': Hook(500, scope['Norm']())})
  assert (
    f'<p>{found["metrics"]["param_norm"]:.3f} after 20 steps</p>'
    in (tmp_path / 'run/report.html').read_text()
  )


@pytest.mark.parametrize(
  ('part', 'message'),
  [
    ({'every': -1}, r'hooks.norm.every=-1: expected'),
    ({'skale': 1.0}, "did you mean 'scale'"),
    ({'call': 'bmx.core.events:Every'}, 'expected a function of an event'),
  ],
)
def test_mistakes_in_hooks_come_before_training(part, message):
  with pytest.raises(InputError, match=message):
    build(hooks={'norm': {'call': f'{__name__}:Norm', 'every': 8} | part})


def test_a_callable_is_an_evaluation(tmp_path):
  class Largest:
    def __call__(self, state):
      return {
        'eval/largest/value': float(max(np.abs(x).max() for x in jax.tree.leaves(state.params)))
      }

    def sections(self):
      return [Section('Largest', '<i>here</i>')]

  x = build()
  found = loop.run(dataclasses.replace(x, evals={**x.evals, 'largest': Largest()}), tmp_path / 'r')
  assert found['metrics']['eval/largest/value'] > 0
  assert '<h2>Largest</h2><i>here</i>' in (tmp_path / 'r/report.html').read_text()


WORSE = {'call': 'bmx.optim.schedules:exponential', 'peak': 1e-2, 'every': 4, 'factor': 2.0}


def stopping(patience=2, metric='eval/valid/loss'):
  """A learning rate that only does harm: the run stops early."""
  config, name = recipes.load(RECIPE, ['mesh.data=1', 'data.holdout=0.2', 'steps=60'])
  config.eval.valid, config.schedule = {'split': 'valid'}, WORSE
  config.stop.update(metric=metric, patience=patience)
  return experiment.build(config, name, jax.devices()[:1])


@pytest.mark.parametrize('after', [True, False])
def test_stopped_stays_stopped(after, tmp_path):
  """Killed between the last checkpoint and summary.json, with and without STEP.after.json."""
  expected = loop.run(stopping(), tmp_path / 'run')
  assert expected['stopped_early']
  before = lines(tmp_path / 'run')
  (tmp_path / 'run/summary.json').unlink()
  if not after:
    (tmp_path / f'run/checkpoints/{expected["steps"]}.after.json').unlink()
  found = loop.run(stopping(), tmp_path / 'run')
  assert found['steps'] == expected['steps']
  assert found['state_digest'] == expected['state_digest']
  assert lines(tmp_path / 'run') == before


def test_a_stopped_run_continues_without_the_metric(tmp_path):
  expected = loop.run(stopping(), tmp_path / 'run')
  assert loop.run(stopping(), tmp_path / 'run')['steps'] == expected['steps']
  longer = loop.run(stopping(patience=3), tmp_path / 'run')
  assert longer['steps'] == expected['steps'] + 10
  assert loop.run(stopping(metric=''), tmp_path / 'run')['steps'] == 60


def test_nan_is_never_best():
  largest, nan = Selection(mode='max'), float('nan')
  assert largest.better(0.2, nan)
  assert not largest.better(nan, None)
  assert not largest.better(nan, 0.2)
  state, keep = policy.LoopState(), Selection('a', mode='max')
  for step, value in enumerate([nan, 0.2, float('inf'), 0.4, 0.3]):
    state.evaluation = {'a': value}
    policy.decide(state, Selection('a', mode='max', patience=9), keep, step)
  assert (state.best_step, state.best['a'], state.waited) == (3, 0.4, 1)


def test_damaged_checkpoints_are_not_counted(tmp_path):
  """Two damaged newest checkpoints and a save: the valid ones stay."""
  x = build()
  state, checkpoints = x.init(), Checkpoints(tmp_path, last=2)
  for step in (10, 20):
    checkpoints.save(state, {'best_step': None}, step)
  checkpoints.close()
  for step in (30, 40):
    shutil.copytree(tmp_path / '20', tmp_path / str(step))
    (tmp_path / str(step) / 'loop.json').write_text('{}')
  checkpoints = Checkpoints(tmp_path, last=2)
  assert checkpoints.newest_valid() == 20
  checkpoints.save(state, {'best_step': None}, 50)
  checkpoints.close()
  assert [s for s in checkpoints.steps() if not checkpoints.verify(s)] == [20, 50]


def test_only_what_bmx_made_is_removed(tmp_path):
  for name in ('20.bak', '020', 'notes', '20 (copy)'):
    (tmp_path / name).mkdir()
    (tmp_path / name / MANIFEST).write_text('{}')
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(build().init(), {'best_step': None}, 10)
  checkpoints.close()
  assert checkpoints.steps() == [10]
  assert {'20.bak', '020', 'notes', '20 (copy)'} < {p.name for p in tmp_path.iterdir()}


def test_a_damaged_or_foreign_after_file_is_not_used(tmp_path, caplog):
  loop.run(build(), tmp_path / 'run')
  checkpoints = Checkpoints(tmp_path / 'run/checkpoints')
  path = tmp_path / 'run/checkpoints/20.after.json'
  assert 'decide' in checkpoints.loop(20)['done']
  plain = json.loads((tmp_path / 'run/checkpoints/20/loop.json').read_text())
  assert 'decide' not in plain['done']
  text = path.read_text()
  other = json.loads((tmp_path / 'run/checkpoints/10.after.json').read_text())
  for damaged in (text.replace('"best_step": ', '"best_step": 1'), text[:50], json.dumps(other)):
    path.write_text(damaged)
    with caplog.at_level('WARNING', logger='bmx'):
      assert checkpoints.loop(20) == plain
    assert 'IS DAMAGED' in caplog.text


def test_files_of_an_interrupted_start_are_ours(tmp_path):
  for name in ('.probe', 'config.json.part', 'lock'):
    (tmp_path / name).touch()
  RunDir(tmp_path, build())
  (tmp_path / 'thesis.txt').touch()
  with pytest.raises(InputError, match=r'found thesis.txt'):
    RunDir(tmp_path, build())


def test_one_process_trains_in_a_directory(tmp_path):
  x = build()
  rundir = RunDir(tmp_path / 'run', x)
  with rundir.locked(), pytest.raises(InputError, match=f'process {os.getpid()}, started'):
    loop.run(x, tmp_path / 'run')
  loop.run(x, tmp_path / 'run')


def test_a_profile_is_written(tmp_path, caplog):
  caplog.set_level('INFO', 'bmx')
  loop.run(build('profile.start=4', 'profile.steps=3'), tmp_path / 'run')
  shown = caplog.text.partition('profile    ')[2].splitlines()
  assert shown[1].split() == ['share', 'ms', 'calls', 'operation'] and '%' in shown[2]
  assert '<h2>Profile</h2>' in (tmp_path / 'run/report.html').read_text()
  assert list(pathlib.Path(tmp_path, 'run/profile').rglob('*.xplane.pb'))
  with pytest.raises(InputError, match=r'profile\.start=40: expected below steps='):
    build('profile.start=40', 'profile.steps=3')


def test_a_profile_that_a_resume_cut_is_not_begun_at_its_end(tmp_path, caplog):
  """A trace that begins where it should end would grow until the process ends."""
  loop.run(build('steps=10'), tmp_path / 'run')
  loop.run(build('steps=20', 'profile.start=5', 'profile.steps=10'), tmp_path / 'run')
  assert 'no profile is written: the run was resumed behind step 5' in caplog.text
  assert not (tmp_path / 'run/profile').exists()
