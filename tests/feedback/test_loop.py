"""The loop by its commands, in one process: train, drift, learn, gate, promote."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment, main
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.feedback import pointer
from bmx.modes import promoted
from bmx.modes.start import Run
from bmx.train import datafile
from bmx.train.run import restored
from bmx.train.rundir import read_config
from bmx.train.state import eval_variables

COLOURS = np.array(['red', 'blue', 'green'])


def write_table(path, rows: int, seed: int, shift: float = 0.0, wrong: float = 0.0) -> None:
  """Rows of one rule, of which the old world shows a half: large `a` are rare there."""
  random = np.random.default_rng(seed)
  a, b = random.normal(size=(2, rows)) + np.array([[shift], [0.0]])
  label = np.where(a > 1.5, b > 0, a + b > 0) ^ (random.random(rows) < wrong)
  colour = COLOURS[random.integers(0, 3, rows)]
  lines = [f'{x:.4f},{y:.4f},{c},{"yes" if z else "no"}'
           for x, y, c, z in zip(a, b, colour, label, strict=True)]  # fmt: skip
  path.write_text('a,b,colour,bought\n' + '\n'.join(lines) + '\n')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A trained champion and tables of a calm and of a shifted world."""
  made = tmp_path_factory.mktemp('loop')
  write_table(made / 'train.csv', 1200, 0)
  write_table(made / 'calm.csv', 400, 1)
  write_table(made / 'shift.csv', 1500, 2, shift=3.0)
  write_table(made / 'bad.csv', 1500, 3, shift=3.0, wrong=0.5)
  words = ('data.target=bought', 'epochs=0', 'steps=120', 'schedule.peak=0.01',
           'task.model.widths=(16,)', 'every.eval=0',
           'show_parameters=1')  # fmt: skip
  flags = [f'--config.{w}' for w in words]
  assert main.main(['--config=table', f'--config.data.path={made}/train.csv', *flags,
                    f'--workdir={made}/champion']) == 0  # fmt: skip
  return made


def run(mode: str, folder, workdir: str, *arguments: str) -> int:
  where = [f'--workdir={folder}/{workdir}'] if workdir else []
  return main.main([f'--mode={mode}', *where, *(a.format(folder) for a in arguments)])


def test_the_loop(folder, capsys):
  for name in ('calm', 'shift'):
    assert run('drift', folder, 'champion', f'--input={{}}/{name}.csv') == 0
  read = lambda name: json.loads((folder / f'champion/drift/{name}.json').read_text())
  assert read('calm')['drifted'] == []
  assert {'a', 'prediction'} <= set(read('shift')['drifted'])
  assert not {'b', 'colour'} & set(read('shift')['drifted'])

  new, least = '--input={}/shift.csv', '--config.feedback.least=50'
  margin = '--config.feedback.margin=0.1'  # the old data have 240 rows
  learn = ('--config.every.log=0', '--config.steps=150')
  assert run('learn', folder, 'champion', new, '--output={}/good', *learn) == 0
  assert run('learn', folder, 'champion', '--input={}/bad.csv', '--output={}/worse', *learn) == 0
  slices = "--config.feedback.slices=('colour','a','label')"
  compare = ('--run={}/champion', new, least, margin, slices,
             '--config.feedback.slice_margin=1.0')  # fmt: skip
  assert run('gate', folder, 'good', *compare) == 0
  assert run('gate', folder, 'worse', *compare) == 1
  found = json.loads((folder / 'good/gate.json').read_text())
  learned = len((folder / 'good/captured.jsonl').read_text().splitlines())
  by_name = {c['name']: c for c in found['checks']}
  assert by_name['new']['rows'] == 1500 - learned == 1500 - found['learned']
  assert sum(c['rows'] for n, c in by_name.items() if n.startswith('colour=') and '(new)' in n
             ) == by_name['new']['rows']  # fmt: skip
  assert 'label=yes (old)' in (folder / 'good/gate.txt').read_text()

  served = f'--pointer={folder}/served.json'
  assert run('promote', folder, 'champion', served) == 2
  assert run('promote', folder, 'champion', served, '--force') == 0
  assert run('promote', folder, 'worse', served) == 2
  assert run('promote', folder, 'good', served) == 0
  assert pointer.read(f'{folder}/served.json').target.run == str(folder / 'good')
  capsys.readouterr()
  assert run('eval', folder, 'served.json') == 0
  assert run('promote', folder, '', served, '--back') == 0
  assert str(folder / 'champion') in capsys.readouterr().out


def test_a_challenger_is_an_ordinary_run(folder):
  """It predicts a file of the champion's form, without the captured data, the champion, or both."""
  assert (folder / 'good').is_dir(), 'made by test_the_loop'
  (folder / 'good/captured.jsonl').rename(folder / 'elsewhere.jsonl')
  (folder / 'champion').rename(folder / 'gone')
  try:
    assert run('predict', folder, 'good', '--input={}/calm.csv') == 0
    assert len((folder / 'good/predictions/calm.150.jsonl').read_text().splitlines()) == 400
  finally:
    (folder / 'gone').rename(folder / 'champion')
    (folder / 'elsewhere.jsonl').rename(folder / 'good/captured.jsonl')


def test_a_server_takes_weights_of_its_own_kind_only(folder):
  """A promoted run has model and encoding of the served one, and an unchanged checkpoint."""
  champion, stored = folder / 'champion', datafile.read(folder / 'champion')
  assert stored is not None
  config = recipes.from_stored(read_config(champion)['config'])
  x = experiment.build(config, 'run', evals=False, stored=stored)
  served = Run(x, champion, champion, stored, '120')
  target = pointer.target_of(folder / 'good', 150)
  new = promoted.load_target(served, target)
  own = eval_variables(restored(x, champion, '120')[0])
  assert tree.signature(new) == tree.signature(own)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(new))  # devices are left alone
  assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (new, own)), strict=True))
  with pytest.raises(InputError, match='differs from the one that was promoted'):
    promoted.load_target(served, dataclasses.replace(target, digest='0' * 64))
  wider = {**x.config, 'task': {**x.config['task'], 'model': {'widths': [32]}}}
  with pytest.raises(InputError, match='as the served model has it'):
    promoted.load_target(served._replace(experiment=dataclasses.replace(x, config=wider)), target)
  other = dataclasses.replace(stored, state={**stored.state, 'class_names': ['a', 'b']})
  with pytest.raises(InputError, match='another state'):
    promoted.load_target(served._replace(stored=other), target)


def test_a_server_without_a_processor_is_named(monkeypatch):
  def devices(kind):
    raise RuntimeError('unknown backend cpu')

  monkeypatch.setattr(jax, 'devices', devices)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(InputError, match='set JAX_PLATFORMS=cuda,cpu'):
    promoted.follower(None, None)  # type: ignore


def test_what_a_pointer_names_is_what_is_used(folder, capsys):
  """Its step, its checkpoint, and no other examples than those of the first command."""
  assert (folder / 'good').is_dir(), 'made by test_the_loop'
  pointed = folder / 'named.json'
  pointer.promote(str(pointed), pointer.target_of(folder / 'champion', 120))
  again = '--input={}/calm.csv', '--output={}/good'
  assert run('learn', folder, 'named.json', *again) == 2
  assert 'has learned from --input=' in capsys.readouterr().err
  assert run('serve', folder, 'named.json', '--step=120') == 2
  assert 'names step 120, which is served' in capsys.readouterr().err
  stored = json.loads(pointed.read_text())
  stored['target']['digest'] = '0' * 64
  pointed.write_text(json.dumps(stored))
  assert run('eval', folder, 'named.json') == 2
  assert 'differs from the one that was promoted' in capsys.readouterr().err


def test_a_challenger_starts_from_the_step_that_was_promoted(folder, capsys, monkeypatch):
  target = pointer.target_of(folder / 'champion', 120)
  older = dataclasses.replace(target, step=60)
  monkeypatch.setattr(pointer, 'check', lambda target: None)
  pointer.promote(str(folder / 'older.json'), older)
  assert run('learn', folder, 'older.json', '--input={}/calm.csv', '--output={}/new') == 2
  assert 'names step 60' in capsys.readouterr().err
  assert not (folder / 'new').exists()


@pytest.mark.parametrize('mode, arguments, message', [
  ('drift', [], 'needs --input'),
  ('drift', ['--input={}/none.csv'], 'no file'),
  ('drift', ['--input={}/calm.csv', '--output=x.txt'], 'ends with .html'),
  ('drift', ['--input={}/calm.csv', '--config.feedback.entry=test'], 'no such entry of eval'),
  ('learn', ['--input={}/calm.csv'], '--output: expected a run directory'),
  ('gate', ['--input={}/calm.csv'], 'expected two runs'),
  ('gate', ['--run={}/champion', '--input={}/calm.csv',
            "--config.feedback.slices=('color',)"], "did you mean 'colour'"),
])  # fmt: skip
def test_bad_input_is_named(folder, capsys, mode, arguments, message):
  assert run(mode, folder, 'champion', *arguments) == 2
  assert message in capsys.readouterr().err
