"""Runs of adapters and compressed runs: `eval` and `predict` compute with their merged weights."""

import json
import pathlib

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment, modes
from bmx.adapt import restore
from bmx.core.errors import InputError
from bmx.modes import Request, start
from bmx.train import loop
from bmx.train.evaluate import evaluations, join, predictions
from bmx.train.rundir import read_config
from bmx.train.state import state_spec

TINY = ['mesh.data=1', 'task.model.dropout=0.0', 'steps=10', 'every.log=5', 'every.save=0',
        'schedule.peak=1e-2']  # fmt: skip
LORA = {'call': 'bmx.adapt.lora:LoRA', 'rank': 2, 'targets': 'dense', 'train': 'head'}
ADALORA = {**LORA, 'call': 'bmx.adapt.adalora:AdaLoRA', 'init_rank': 4, 'tfinal': 2}
ADAPTERS = {'lora': LORA, 'lora int8': {**LORA, 'base': 'int8'}, 'adalora': ADALORA}
COMPRESSED = {
  'int8': ['kind=int8'],
  'gptq': ['kind=int4', 'group=8', 'method=gptq', 'examples=64'],
  'pruned': ['method=magnitude', 'pattern=neurons'],
}


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """Modes run in this process, on one device, and leave its loggers alone."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(start, 'start', lambda request: pathlib.Path(request.workdir))
    patch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
    yield


def config(*words, **task):
  c, _ = recipes.load('digits_mlp:tiny', TINY)
  if task:
    with c.unlocked():
      c.task = {**task, 'inner': c.task.to_dict()}
  recipes.apply(c, list(words))
  return c


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'run'
  loop.run(experiment.build(config()), folder)
  return folder


def made(name, base, folder):
  """A run of a case -> its config as it is stored."""
  if name in ADAPTERS:
    loop.run(experiment.build(config(f'init.path={base}', **ADAPTERS[name])), folder)
  else:
    words = [f'compress.{w}' for w in COMPRESSED[name]]
    request = Request(config(*words), 'run', workdir=str(base), output=str(folder))
    modes.run('compress', request)
  return recipes.from_stored(read_config(folder)['config'])


def merged(x, folder):
  """A state of the plain task with the weights of a run."""
  spec = state_spec(x)
  return spec.create({}, restore.load(str(folder), spec.plain))


@pytest.mark.parametrize('name', [*ADAPTERS, *COMPRESSED])
def test_modes_compute_with_the_merged_weights(name, base, tmp_path, capsys):
  stored, folder = made(name, base, tmp_path / 'run'), tmp_path / 'run'
  for mode in ('eval', 'predict'):
    modes.run(mode, Request(stored, 'run', workdir=str(folder)))
  metrics = json.loads((folder / 'evaluation.10.json').read_text())['metrics']
  lines = (folder / 'predictions/test.10.jsonl').read_text().splitlines()
  x = experiment.build(config())
  data, evaluated = x.evals['test'].data, evaluations(x)['test']
  for key, value in evaluated(merged(x, folder)).items():
    assert metrics[key] == pytest.approx(value, rel=1e-4), key
  found = join(list(predictions(data, x.task, x.layout, merged(x, folder))))
  rows = x.task.readable(found, data.metadata)
  assert len(rows) == data.size
  assert [json.loads(line)['prediction'] for line in lines] == [row['prediction'] for row in rows]
  assert evaluated(merged(x, base))['eval/test/loss'] != metrics['eval/test/loss']


def test_a_compressed_run_is_not_trained_on(base, tmp_path):
  """Its optimizer trains nothing: the way forward is named; adapters around it learn."""
  stored = made('int8', base, tmp_path / 'run')
  stored.steps = 20
  with pytest.raises(InputError, match=r'(?s)optimizer=optax:identity.*LoRA.*init.path=.*Fake'):
    loop.run(experiment.build(stored), tmp_path / 'run')
  again = config(f'init.path={tmp_path}/run', **LORA)
  assert np.isfinite(loop.run(experiment.build(again), tmp_path / 'more')['metrics']['loss'])
