"""Starting from a run of bmx: the weights that are wanted, all of them, and nothing else."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax.contrib
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.adapt import restore
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.train import loop
from bmx.train.checkpoint import Checkpoints
from bmx.train.state import plan_state
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures('short_library')
SMALL = ('steps=6', 'mesh.data=1', 'every.log=3', 'every.save=3')


def build(recipe, *overrides, devices=1):
  config, name = recipes.load(str(ROOT / f'configs/{recipe}'), overrides)
  return experiment.build(config, name, jax.devices()[:devices])


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / 'bert'
  loop.run(build('bert_small.py:tiny', *SMALL), path)
  return path


@pytest.fixture(scope='module')
def decoder(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / 'gpt'
  loop.run(build('gpt_char.py:tiny', *SMALL, 'ema=0.5', f'data.path={ROOT}/LICENSE'), path)
  return path


@functools.cache
def stored(path):
  """All leaves of the newest checkpoint, read whole."""
  checkpoints = Checkpoints(path / 'checkpoints')
  state = checkpoints.saver.restore(checkpoints.folder / str(checkpoints.steps()[-1]))
  checkpoints.close()
  return {k: np.asarray(v) for k, v in tree.named(state).items()}


def finetune(path, *overrides, **options):
  return build(
    'bert_finetune.py', f'init.path={path}', 'data.path=x.csv', 'data.text=t',
    'eval.valid.path=x.csv', 'length=16', 'batch_size=4', 'schedule.warmup=1', 'mesh.data=1',
    *overrides, **options,
  )  # fmt: skip


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  lines = [f'{"good" if i % 2 else "bad"} film {i},{i % 2}' for i in range(16)]
  (tmp_path / 'x.csv').write_text('t,label\n' + '\n'.join(lines) + '\n')


def test_the_encoder_is_the_runs_and_the_head_is_new(pretrained, caplog):
  caplog.set_level('INFO')
  state = finetune(pretrained).init()
  there = stored(pretrained)
  for name, leaf in tree.named(state.params).items():
    if name.startswith(('head/', 'encoder/pooler')):
      assert f'params/{name}' not in there
      continue
    np.testing.assert_array_equal(leaf, there[f'params/{name}'])
  assert 'not used' in caplog.text and 'transform/kernel' in caplog.text
  assert int(state.step) == 0 and not any(np.abs(m).any() for m in jax.tree.leaves(state.opt_state))


def test_from_scratch_is_the_same_model_with_new_weights(pretrained):
  state = finetune(pretrained, 'init.reinit=.').init()
  kernel = 'encoder/stack/block_0/attention/query/kernel'
  there = stored(pretrained)[f'params/{kernel}']
  mine = np.asarray(tree.named(state.params)[kernel])
  assert mine.shape == there.shape and (mine != there).mean() > 0.99


def test_every_layout_starts_from_the_same_weights(decoder):
  one = build('gpt_char.py:tiny', f'init.path={decoder}', 'mesh.data=1').init()
  options = ('mesh.data=1', 'mesh.fsdp=4', 'mesh.model=2')
  many = build('gpt_char.py:tiny', f'init.path={decoder}', *options, devices=8).init()
  assert tree.digest(one.params) == tree.digest(many.params)
  spread = [x.sharding.is_fully_replicated for x in jax.tree.leaves(many.params)]
  assert not all(spread)


def test_the_moving_average_is_what_a_run_gives(decoder):
  state = build('gpt_char.py:tiny', f'init.path={decoder}', 'mesh.data=1', 'ema=0.9').init()
  for name, leaf in tree.named(state.params).items():
    np.testing.assert_array_equal(leaf, stored(decoder)[f'ema/params/{name}'])
  assert tree.digest(state.ema['params']) == tree.digest(state.params)


def test_a_run_that_goes_on_does_not_start_again(pretrained, tmp_path):
  overrides = ('epochs=0.0', 'every.save=2', 'every.log=2', 'schedule.warmup=1')
  loop.run(finetune(pretrained, *overrides, 'steps=2'), tmp_path / 'run')

  def again(plan):
    raise AssertionError('weights were read a second time')

  x = dataclasses.replace(finetune(pretrained, *overrides, 'steps=4'), init=again)
  assert loop.run(x, tmp_path / 'run')['steps'] == 4


BAD = {
  'nowhere': ('nowhere', '', "init.path='nowhere': expected a folder"),
  'size': (
    None,
    'task.model.width=32',
    r'(?s)does not fit.*differs +embed/table: has \[\[256, 64\]',
  ),
  'depth': (None, 'task.model.depth=3', r'(?s)differs +stack/blocks'),
  'untied': (None, 'task.model.tied=False', r'missing +head/table'),
}


@pytest.mark.parametrize('name', BAD)
def test_weights_that_do_not_fit(decoder, name):
  path, override, said = BAD[name]
  overrides = [f'init.path={path or decoder}', 'mesh.data=1', *[override] * bool(override)]
  with pytest.raises(InputError, match=said):
    build('gpt_char.py:tiny', *overrides).init()


def test_a_folder_without_a_tokenizer(decoder):
  with pytest.raises(InputError, match=r'no tokenizer\.json in'):
    finetune(decoder)


def test_a_model_without_an_encoder(decoder, pretrained):
  (decoder / 'tokenizer.json').write_text((pretrained / 'tokenizer.json').read_text())
  with pytest.raises(InputError, match='expected one with an encoder'):
    finetune(decoder)
  (decoder / 'tokenizer.json').unlink()


def test_nothing_to_start_from():
  with pytest.raises(InputError, match=r'--config\.init\.path=DIR'):
    finetune('')


def test_the_optimizer_sees_the_weights_that_are_read(decoder):
  """Some transforms keep a copy of the parameters that they were made with."""
  x = build('gpt_char.py:tiny', f'init.path={decoder}', 'mesh.data=1')
  tx = optax.contrib.schedule_free_sgd(0.1)
  state = restore.start(
    x.task,
    plan_state(x.task, tx, x.data.abstract, x.layout),
    {'path': str(decoder), 'reinit': ''},
  )
  assert tree.digest(state.opt_state.z) == tree.digest(state.params)
  np.testing.assert_array_equal(state.params['position'], stored(decoder)['ema/params/position'])


def test_a_model_of_a_run_that_left_choices_to_the_device(tmp_path):
  """'auto' in a stored config is settled as any device can compute it."""
  config, _ = recipes.load(str(ROOT / 'configs/gpt2_124m.py:tiny'))
  assert config.task.model.remat == config.task.model.attention == 'auto'
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').write_text(json.dumps({'config': recipes.plain(config)}))
  made = restore.model(str(tmp_path))
  assert (made.remat, made.attention) == ('none', 'xla')


def test_running_statistics_start_anew_with_their_layer(tmp_path):
  mlp = 'task.model.norm=batch', 'epochs=0.0', *SMALL
  loop.run(build('digits_mlp.py:tiny', *mlp), tmp_path / 'run')
  init = f'init.path={tmp_path / "run"}'
  kept = build('digits_mlp.py:tiny', *mlp, init).init().collections['batch_stats']
  anew = build('digits_mlp.py:tiny', *mlp, init, 'init.reinit=.').init().collections['batch_stats']
  assert any(np.any(v) for k, v in tree.named(kept).items() if k.endswith('mean'))
  assert not any(np.any(v) for k, v in tree.named(anew).items() if k.endswith('mean'))
  wider = 'task.model.widths=(16, 16)', 'init.reinit=dense|head'
  with pytest.raises(InputError, match='does not fit the model'):
    build('digits_mlp.py:tiny', *mlp, init, *wider).init()


def test_an_evaluation_with_another_tokenizer_is_refused(tmp_path):
  (tmp_path / 'a.txt').write_text('Ab ab.\n\n' * 200)
  config, name = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), ('mesh.data=1',))
  part = {'call': 'bmx.data.text.packing:packed', 'paths': (str(tmp_path / 'a.txt'),), 'length': 16}
  learned = {'call': 'bmx.data.text.tokenizer_train:trained', 'kind': 'bpe', 'vocab_size': 300,
             'paths': part['paths']}  # fmt: skip
  with config.unlocked():
    config.data = {**part, 'tokenizer': learned}
    config.eval = {'bytes': part}
    config.task.model.vocab_size = 320
  with pytest.raises(InputError, match='eval.bytes: expected the tokenizer of the training data'):
    experiment.build(config, name, jax.devices()[:1])
