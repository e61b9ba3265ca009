"""Mode `compress` on a run, in this process: what it writes is a run that other modes read."""

import json
import pathlib

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment, modes
from bmx.adapt.tokens import check_tokenizer
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models import kernels
from bmx.modes import Request, start
from bmx.modes import compress as compress_mode
from bmx.modes.compressors import Plain, checked, compressed
from bmx.train import loop
from bmx.train.run import restored
from bmx.train.rundir import read_config
from bmx.train.state import eval_variables

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


def test_adapters_keep_the_codes_of_a_compressed_run(trained, four_bits):
  """Rounding them to the nearest again would give others; the plain values are exact."""
  held = experiment.build(stored(trained / 'int4'))
  state, _ = restored(held, trained / 'int4', 'latest')
  codes = tree.named(jax.device_get(state.collections['quantized']))
  plain = held.task.merged_params(eval_variables(state))

  def begun(**words):
    config = stored(trained / 'a', f'init.path={trained}/int4')
    with config.unlocked():
      config.task = {'call': 'bmx.adapt.lora:LoRA', 'inner': config.task.to_dict(), **words}
    x = experiment.build(config)
    return x, x.init()

  _, new = begun(base='int4', group=16)
  for name, leaf in tree.named(jax.device_get(new.collections['quantized'])).items():
    np.testing.assert_array_equal(leaf, codes[name])
  _, again = kernels.split_like(plain, state.collections['quantized'])
  assert any((x != codes[k]).any() for k, x in tree.named(jax.device_get(again)).items())
  x, new = begun(base='float32')
  for a, b in zip(*map(jax.tree.leaves, (x.task.merged_params(eval_variables(new)), plain)),
                  strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)
  with pytest.raises(InputError, match='int4 in groups of 16 there, int4 in groups of 8 in the t'):
    begun(base='int4', group=8)


def test_what_calibration_does_not_reach_is_named(trained, caplog):
  words = 'task.model.experts=4', 'compress.tables=int8', 'compress.method=awq'
  config = stored(trained / 'a', *words, 'compress.examples=8')
  x = experiment.build(config)
  words = checked(config['compress'], {})
  found = compressed(Plain(x, {'params': x.init().params}, words, lambda: x))
  expected = {f'stack/blocks/experts/{k}' for k in ('up', 'down')} | {'embed/table'}
  assert expected == {*found.nearest}
  assert all(path in caplog.text for path in expected)
  (line,) = compress_mode.nearest_lines(found.nearest)
  assert line.startswith('rounded to the nearest') and 'experts/up' in line


def test_a_teacher_of_another_tokenizer(trained, tmp_path):
  """Of equal vocabulary: its ids mean other texts. Bytes and a teacher's own are taken."""
  (tmp_path / 'other.txt').write_text('other words of other letters: xyz\n' * 30)

  def config(source, teacher=''):
    tokenizer = {'call': 'bmx.data.text.tokenizer_train:trained', 'kind': 'bpe', 'vocab_size': 300,
                 'path': str(source)}  # fmt: skip
    c = stored(trained / 'a', 'steps=1', 'schedule.warmup=0', 'task.model.vocab_size=300')
    c.eval = {}
    if source:
      c.data.tokenizer = tokenizer
    if teacher:
      model = {'call': 'bmx.adapt.restore:model', 'path': str(teacher)}
      c.task = {'call': 'bmx.compress.distill:Distill', 'inner': c.task, 'teacher': model}
      c.init.teacher = str(teacher)
    return c

  def distilled(source, teacher):
    experiment.build(config(source, teacher)).init()

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    loop.run(experiment.build(config(trained / 'text.txt')), tmp_path / 'bpe')
    distilled(trained / 'text.txt', tmp_path / 'bpe')
    for source, said in ((tmp_path / 'other.txt', 'BPE'), ('', 'bytes')):
      said = rf'init.teacher=.*its tokenizer is BPE of \d+ tokens, that of the data {said}'
      with pytest.raises(InputError, match=said):
        distilled(source, tmp_path / 'bpe')
  check_tokenizer(str(trained / 'a'), '', 'teacher')
  text = (tmp_path / 'bpe/tokenizer.json').read_text()
  with pytest.raises(InputError, match='its tokenizer is bytes, that of the data BPE'):
    check_tokenizer(str(trained / 'a'), text, 'teacher')
