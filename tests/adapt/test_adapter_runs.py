"""Runs of adapters: what they keep, and that every mode reads them as any other run."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment, modes
from bmx.adapt import adalora, adapters, peft, restore, runs
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.modes import evaluate
from bmx.train import loop
from bmx.train.run import restored
from bmx.train.state import state_spec, variables_of
from tests.conftest import ROOT

TINY = ('mesh.data=1', 'every.log=2', 'every.save=2', 'steps_per_call=2', 'batch_size=4', 'steps=2',
        'length=16', 'task.model.width=16', 'task.model.heads=2', 'task.model.depth=2',
        f'data.path={ROOT}/LICENSE')  # fmt: skip
LORA = {'call': 'bmx.adapt.lora:LoRA', 'rank': 2, 'targets': 'query|value|down'}


def config(*words, evals=False, **lora):
  c, name = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), TINY)
  with c.unlocked():
    c.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 5e-3}
    c.eval = c.eval if evals else {}
    if lora:
      c.task = {**lora, 'inner': c.task.to_dict()}
  recipes.apply(c, list(words))
  return c


def build(*words, **lora):
  return experiment.build(config(*words, **lora), 'run', jax.devices()[:1])


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  path = tmp_path_factory.mktemp('base') / 'run'
  loop.run(build(), path)
  return path


@pytest.fixture(scope='module')
def adapted(base, tmp_path_factory):
  """A run of adapters around the base, its average kept, that stopped once and was resumed."""
  path = tmp_path_factory.mktemp('adapted') / 'run'
  words = f'init.path={base}', 'ema=0.5'
  loop.run(build(*words, 'steps=2', **LORA), path)
  loop.run(build(*words, 'steps=4', **LORA), path)
  return path


def plain_of(path):
  """Plain parameters of a run, by name, as `init.path` reads them."""
  return jax.device_get(restore.load(str(path), state_spec(build()).plain))


def test_a_resumed_run_is_an_uninterrupted_one(base, adapted, tmp_path):
  loop.run(build(f'init.path={base}', 'ema=0.5', 'steps=4', **LORA), tmp_path / 'run')
  digest = lambda path: json.loads((path / 'summary.json').read_text())['state_digest']
  assert digest(tmp_path / 'run') == digest(adapted)


@pytest.mark.nightly
def test_a_state_of_adalora_is_read_back(base, tmp_path):
  """Masks and importance of the allocator are part of a checkpoint."""
  words = {**LORA, 'call': 'bmx.adapt.adalora:AdaLoRA', 'init_rank': 4, 'tfinal': 1}
  x = build(f'init.path={base}', 'steps=4', 'ema=0.5', **words)
  digest = loop.run(x, tmp_path / 'run')['state_digest']
  state, step = restored(x, tmp_path / 'run', 'latest')
  assert step == 4 and tree.digest(state) == digest
  for values in (state.params, state.ema['params']):
    kept = adalora.ranks(values['adapters'])
    assert sum(int(v.sum()) for v in kept.values()) == 2 * 6


def test_checkpoints_hold_adapters_only(base, adapted):
  leaves = json.loads((adapted / 'checkpoints/4/manifest.json').read_text())['leaves']
  assert not [k for k in leaves if 'frozen' in k]
  held = {k.partition('/adapters/')[2] for k in leaves if k.startswith('params/')}
  assert held == {f'stack/blocks/{n}/kernel_{m}' for m in 'ab'
                  for n in ('attention/query', 'attention/value', 'feed_forward/down')}  # fmt: skip
  frozen = json.loads((adapted / 'constants/frozen/manifest.json').read_text())['leaves']
  assert {*frozen} == {*plain_of(base)}


def test_a_run_of_adapters_gives_its_merged_weights(base, adapted):
  """To init.path, against A·B added by hand; what has no adapter is the base's."""
  was, now = plain_of(base), plain_of(adapted)
  path, facts = runs.checkpoint(str(adapted), 'latest')
  like = tree.named(state_spec(build()).plain)
  _, variables = runs.read_variables(str(adapted), path, facts, like)
  own = tree.named(variables['params']['adapters'])
  for name, leaf in now.items():
    if not name.endswith(('query/kernel', 'value/kernel', 'down/kernel')):
      np.testing.assert_array_equal(leaf, was[name])
      continue
    a, b = (np.asarray(own[f'{name.removesuffix("kernel")}kernel_{x}'], np.float64) for x in 'ab')
    added = 8.0 * np.einsum('lir,lro->lio', a, b.reshape(*b.shape[:2], -1))
    np.testing.assert_allclose(leaf, was[name] + added.reshape(leaf.shape), atol=1e-6)
    assert np.abs(leaf - was[name]).max() > 1e-4
  started = build(f'init.path={adapted}', 'init.reinit=position', **LORA).init()
  for name, leaf in tree.named(started.collections['frozen']).items():
    if name != 'position':
      np.testing.assert_array_equal(leaf, now[name])


@pytest.mark.nightly
def test_modes_read_a_run_of_adapters(base, adapted, tmp_path, capsys):
  """Evaluation equals that of a plain run whose weights are the merged ones; it generates."""
  found = evaluate.evaluate(build('ema=0.5', evals=True, **LORA), adapted)
  still = 'steps=1', 'schedule.peak=1e-30'
  loop.run(build(f'init.path={adapted}', *still), tmp_path / 'plain')
  merged = evaluate.evaluate(build(f'init.path={adapted}', *still, evals=True), tmp_path / 'plain')
  assert found['eval/valid/loss'] == pytest.approx(merged['eval/valid/loss'], rel=1e-6)
  texts = []
  for path, lora in ((adapted, LORA), (tmp_path / 'plain', {})):
    words = (
      'generate.max_new_tokens=6',
      'generate.temperature=0.0',
      'ema=0.5',
      'mesh.data=8',
      'batch_size=8',
    )
    c = config(*words, **lora)
    modes.run('generate', modes.Request(c, 'run', str(path), prompts=('def ',)))
    texts.append(capsys.readouterr().out)
  assert texts[0] == texts[1] != ''


@pytest.mark.nightly
def test_adapters_of_runs_are_added_with_weights(base, adapted, tmp_path):
  """Against the merged weights of each run alone."""
  other = tmp_path / 'other'
  loop.run(build(f'init.path={base}', 'seed=5', **LORA | {'rank': 3}), other)
  several = adapters.load({'a': str(adapted), 'b': str(other)})
  was, a, b = plain_of(base), plain_of(adapted), plain_of(other)
  alone, mixed = (tree.named(several.merged(w)) for w in ({'a': 1.0}, {'a': 0.5, 'b': -2.0}))
  for name, leaf in was.items():
    np.testing.assert_array_equal(tree.named(several.merged({}))[name], leaf)
    np.testing.assert_allclose(alone[name], a[name], atol=1e-6)
    expected = leaf + 0.5 * (a[name] - leaf) - 2.0 * (b[name] - leaf)
    np.testing.assert_allclose(mixed[name], expected, atol=1e-6)
  with pytest.raises(InputError, match="'c': expected an adapter of a, b"):
    several.merged({'c': 1.0})
  # A new run begins with the adapters of a run.
  words = f'init.path={base}', f'init.adapter={adapted}'
  begun = jax.device_get(build(*words, **LORA).init().params)
  path, facts = runs.checkpoint(str(adapted), 'latest')
  held = jax.device_get(runs.read_params(path, facts, {}))
  jax.tree.map(np.testing.assert_array_equal, begun, held)
  with pytest.raises(InputError, match="init.adapter='nowhere': expected a folder"):
    build('init.adapter=nowhere', **LORA).init()
  with pytest.raises(InputError, match='task CausalLM: expected bmx.adapt.lora:LoRA around it'):
    build(f'init.adapter={adapted}').init()
  with pytest.raises(InputError, match='task.rank=3, .*: expected LoRA with rank=2'):
    build(*words, **LORA | {'rank': 3}).init()
  # Those of another base are refused.
  with pytest.raises(InputError, match='expected adapters of the base'):
    build(f'init.adapter={adapted}', **LORA).init()
  apart = tmp_path / 'apart'
  loop.run(build('seed=7', **LORA), apart)
  with pytest.raises(InputError, match=f'{apart}: expected adapters of the base of {adapted}'):
    adapters.load({'a': str(adapted), 'b': str(apart)})
  with pytest.raises(InputError, match='expected bmx.adapt.lora:LoRA around it'):
    adapters.load({'base': str(base)})


@pytest.mark.nightly
def test_merge_writes_a_folder_of_transformers(adapted, tmp_path, capsys, monkeypatch):
  """The folder holds the merged weights; what python of docs/adapt.md names is there."""
  c = config('mesh.data=8', 'batch_size=8', 'ema=0.5', **LORA)
  with pytest.raises(InputError, match='is not a GPT2LMHeadModel of transformers'):
    modes.run('merge', modes.Request(c, 'run', str(adapted), output=str(tmp_path / 'no')))
  full = {'positions': 'rotary', 'norm': 'rms', 'gated': True, 'activation': 'silu'}
  words = [f'task.model.{k}={v}' for k, v in full.items()]
  llama = [w.replace('task.', 'task.inner.') for w in words]
  loop.run(build(*llama, **LORA), tmp_path / 'llama')
  c = config('mesh.data=8', 'batch_size=8', *llama, **LORA)
  request = modes.Request(c, 'run', str(tmp_path / 'llama'), output=str(tmp_path / 'merged'))
  assert modes.run('merge', request) == 0
  spec = state_spec(build(*words)).plain
  read = jax.device_get(restore.load(str(tmp_path / 'merged'), spec))
  again = jax.device_get(restore.load(str(tmp_path / 'llama'), spec))
  jax.tree.map(np.testing.assert_array_equal, read, again)
  shown = capsys.readouterr().err
  assert 'before: frozen' in shown and 'after: merged' in shown
  with pytest.raises(InputError, match='name another folder'):
    modes.run('merge', request)
  with pytest.raises(InputError, match='--output: expected a folder'):
    modes.run('merge', modes.Request(c, 'run', str(tmp_path / 'llama')))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs').mkdir()
  for name in ('adapted', 'other'):
    (tmp_path / 'runs' / name).symlink_to(tmp_path / 'llama')
  scope = {}
  blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/adapt.md').read_text(), re.DOTALL)
  for code in blocks[1:]:
    exec(code, scope)
  assert (tmp_path / 'adapter/adapter_model.safetensors').is_file()
  mean = jax.device_get(tree.named(scope['mean']))
  for name, leaf in mean.items():
    np.testing.assert_allclose(leaf, again[name], atol=1e-6)


@pytest.mark.nightly
def test_a_quantized_base_is_small_and_reads_back(base, tmp_path):
  """QLoRA: the base is kept in a quarter of its kernels' bytes."""
  words = {**LORA, 'base': 'int8'}
  loop.run(build(f'init.path={base}', 'steps=2', **words), tmp_path / 'run')
  held = json.loads((tmp_path / 'run/constants/quantized/manifest.json').read_text())['leaves']
  assert {v[1] for k, v in held.items() if k.endswith('/int8')} == {'int8'}
  was, now = plain_of(base), plain_of(tmp_path / 'run')
  for name, leaf in now.items():
    if not name.endswith(('query/kernel', 'value/kernel', 'down/kernel')):
      error = np.abs(leaf - was[name]).max()
      assert error <= (np.abs(was[name]).max() / 254 if name.endswith('kernel') else 0) * 1.001


def test_the_digest_of_a_base_does_not_depend_on_how_it_is_stored(base, tmp_path):
  """It is that of the plain kernels, which a folder of PEFT names; checkpoints keep it."""
  digest = lambda *words, **lora: peft.base_digest(
    variables_of(build(*words, **LORA, **lora).init())
  )
  kinds = ('float32', 'bfloat16', 'int8')
  found = {digest(f'init.path={base}', base=kind) for kind in kinds}
  assert len(found) == 1 and len(found.pop()) == 64
  expected = digest(f'init.path={base}')
  loop.run(build(f'init.path={base}', **LORA, base='int8'), tmp_path / 'run')
  path, facts = runs.checkpoint(str(tmp_path / 'run'), 'latest')
  _, variables = runs.read_variables(str(tmp_path / 'run'), path, facts, {})
  assert peft.base_digest(variables) == expected
  assert digest(base='int8') == ''  # of a random base that is kept in no other form


@pytest.mark.nightly
def test_a_base_of_another_run_is_refused(base, adapted, tmp_path):
  """Constants of a run are its own: copied over those of another, the digest differs."""
  shutil.copytree(adapted, tmp_path / 'run')
  c = build('ema=0.5', evals=True, **LORA)
  other = tmp_path / 'other'
  loop.run(build('seed=7', 'steps=2', **LORA), other)
  shutil.rmtree(tmp_path / 'run/constants')
  shutil.copytree(other / 'constants', tmp_path / 'run/constants')
  with pytest.raises(InputError, match='they are of another run'):
    restore.load(str(tmp_path / 'run'), state_spec(build()).plain)
  with pytest.raises(InputError, match='they are of another run'):
    evaluate.evaluate(c, tmp_path / 'run')
