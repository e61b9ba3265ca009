"""Mode `compress` on a run, in this process: what it writes is a run that other modes read."""

import json
import pathlib

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import modes
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.modes import Request, start
from bmx.train.rundir import read_config

TEXT = 'to be, or not to be, that is the question: whether it is nobler in the mind to suffer\n'
BASE = ['mesh.data=1', 'task.model.depth=1', 'length=16', 'batch_size=8', 'steps=30',
        'eval.valid.batch_size=64', 'every.log=30', 'schedule.peak=1e-2']  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Modes run in this process, on one device, and leave its loggers alone."""
  monkeypatch.setattr(start, 'start', lambda request: pathlib.Path(request.workdir))
  monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  (folder / 'text.txt').write_text(TEXT * 40)
  config, name = recipes.load('gpt_char:tiny', [*BASE, f'data.path={folder}/text.txt'])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
    patch.setattr(start, 'start', lambda request: pathlib.Path(request.workdir))
    modes.run('train', Request(config, name, workdir=str(folder / 'a')))
  return folder


def stored(workdir, *overrides):
  config = recipes.from_stored(read_config(pathlib.Path(workdir))['config'])
  recipes.apply(config, list(overrides))
  return config


def compress(workdir, output, *words):
  config = stored(workdir, *(f'compress.{w}' for w in words))
  modes.run('compress', Request(config, 'gpt_char', workdir=str(workdir), output=str(output)))
  return json.loads((pathlib.Path(output) / 'compress.json').read_text())


def evaluation(workdir):
  modes.run('eval', Request(stored(workdir), 'gpt_char', workdir=str(workdir)))
  return json.loads((pathlib.Path(workdir) / 'evaluation.30.json').read_text())['metrics']


@pytest.fixture(scope='module')
def four_bits(trained):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
    patch.setattr(start, 'start', lambda request: pathlib.Path(request.workdir))
    words = 'kind=int4', 'method=gptq', 'group=16', 'examples=64'
    return compress(trained / 'a', trained / 'int4', *words)


def test_the_new_run_is_smaller_and_evaluates_as_the_table_says(trained, four_bits, capsys):
  before, after = four_bits['before'], four_bits['after']
  assert before['parameters'] == after['parameters']
  assert before['eval/valid/loss'] == pytest.approx(evaluation(trained / 'a')['eval/valid/loss'])
  found = evaluation(trained / 'int4')['eval/valid/loss']
  assert found == pytest.approx(after['eval/valid/loss'])
  assert abs(found - before['eval/valid/loss']) < 0.02
  # All but tables and norms is at 4 bits with a scale for 16: 0.75 bytes for 4.
  config = json.loads((trained / 'int4' / 'config.json').read_text())['config']
  assert config['task']['call'] == 'bmx.compress.quantize:Quantized'
  kernels = 64 * (4 * 64 + 2 * 256)
  assert after['bytes'] == before['bytes'] - kernels * (4 - 0.5 - 4 / 16)
  on_disk = sum(p.stat().st_size for name in ('checkpoints', 'constants')
                for p in (trained / 'int4' / name).rglob('*') if p.is_file())  # fmt: skip
  assert on_disk < 1.2 * after['bytes'] + 40_000


def test_it_generates_with_kernels_that_stay_stored(trained, four_bits, capsys, monkeypatch):
  from bmx.serve import text

  seen = []
  plain = text.Generator.__init__

  def init(self, model, params, *args):
    seen.append(params)
    plain(self, model, params, *args)

  monkeypatch.setattr(text.Generator, '__init__', init)
  words = 'generate.temperature=0.0', 'generate.max_new_tokens=6', 'generate.cache=int8'
  request = Request(stored(trained / 'int4', *words), 'gpt_char', workdir=str(trained / 'int4'),
                    prompts=('to be',))  # fmt: skip
  modes.run('generate', request)
  assert capsys.readouterr().out.startswith('to be')
  (variables,) = seen
  assert {np.dtype(x.dtype).name for x in jax.tree.leaves(variables['quantized'])} == {
    'uint8', 'float32',
  }  # fmt: skip
  assert not [k for k in tree.named(variables['params']) if k.endswith('/kernel')]


@pytest.mark.parametrize(('words', 'message'), [
  (['method=gptk'], "compress.method='gptk': expected one of .*did you mean 'gptq'"),
  (['kind=int7'], "compress.kind='int7': expected one of"),
  (['kind=int4', 'group=24'], '/kernel: compress.group=24: expected a divisor of'),
  (['method=awq', 'examples=0'], 'compress.examples=0: expected at least 1 for compress.method'),
  (['targets=nothing'], "compress.targets='nothing': expected a regex that matches a kernel"),
])  # fmt: skip
def test_words_that_cannot_be(trained, tmp_path, words, message):
  with pytest.raises(InputError, match=message):
    compress(trained / 'a', tmp_path / 'new', *words)
  assert not (tmp_path / 'new' / 'config.json').exists()


def test_runs_that_cannot_be(trained, four_bits, tmp_path):
  with pytest.raises(InputError, match='this one is quantized already'):
    compress(trained / 'int4', tmp_path / 'new')
  with pytest.raises(InputError, match='expected a new directory; it holds a run'):
    compress(trained / 'a', trained / 'int4')
  with pytest.raises(InputError, match='--output=: expected the run directory to write'):
    compress(trained / 'a', '')
  (trained / 'text.txt').rename(trained / 'moved.txt')
  try:
    config = stored(trained / 'a', 'compress.method=gptq')
    config.eval = {}
    with pytest.raises(InputError, match='expected the training data of the run, to calibrate'):
      modes.run('compress', Request(config, 'gpt_char', workdir=str(trained / 'a'),
                                    output=str(tmp_path / 'new')))  # fmt: skip
  finally:
    (trained / 'moved.txt').rename(trained / 'text.txt')
