"""Sweeps: trials of a tiny recipe, pruning, refusals."""

import json
import logging
import shlex

import pytest

from bmx import arguments as argument_parser
from bmx import cli, config
from bmx.config.spaces import Space, split
from bmx.core.errors import InputError
from bmx.core.events import Hook
from bmx.modes import sweep

RECIPE = [
  'sweep', 'digits_mlp:tiny', '--data.holdout=0.2', '--eval.valid.split=valid', '--steps=4',
  '--every.eval=2', '--every.save=0', '--keep.metric=eval/valid/loss', '--cache=off',
]  # fmt: skip
PEAK = '--schedule.peak=log(1e-4,1e-2)'
WIDTHS = '--task.model.widths=choice((8,),(8,4))'


@pytest.fixture(autouse=True)
def own_logging():
  log = logging.getLogger('bmx')
  former = list(log.handlers), log.level, log.propagate
  yield
  log.handlers[:], log.level, log.propagate = former


def test_spaces():
  fixed, spaces = split(['steps=3', 'a.b=log(1e-4, 1)', 'c=choice((1,2),(3,))', 'd=int(1,4)'])
  assert fixed == ['steps=3']
  assert spaces == [
    Space('a.b', 'log', ('1e-4', '1')),
    Space('c', 'choice', ('(1,2)', '(3,)')),
    Space('d', 'int', ('1', '4')),
  ]


@pytest.mark.parametrize(('text', 'message'), [
  ('lgo(1,2)', "did you mean 'log'"),
  ('log(0,2)', 'expected 0 < low < high'),
  ('uniform(2,1)', 'expected low < high'),
  ('uniform(0,inf)', 'both finite'),
  ('int(1,2.5)', 'expected two numbers'),
  ('uniform(1)', 'expected two numbers'),
  ('choice(a)', 'expected at least two different values'),
])  # fmt: skip
def test_a_wrong_space_names_its_word(text, message):
  with pytest.raises(InputError, match=r'--config\.a\.b=') as error:
    split([f'a.b={text}'])
  assert message in str(error.value)


@pytest.mark.parametrize(('arguments', 'message'), [
  ([*RECIPE, '--trials=2'], 'expected a word to search'),
  ([*RECIPE, PEAK], '--trials=0: expected at least 1'),
  ([*RECIPE, PEAK, '--trials=1', '--keep.metric='], 'expected a metric to compare trials by'),
  ([*RECIPE, PEAK, '--trials=1', '--keep.metric=eval/test/loss'], 'must not select a trial'),
  ([*RECIPE, PEAK, '--trials=1', '--eval.valid.split=test'], 'must not select a trial'),
  ([*RECIPE, '--schedule.peek=log(1,2)', '--trials=1'], "did you mean 'peak'"),
  ([*RECIPE, '--batch_size=uniform(1.5,2.5)', '--trials=1'], 'batch_size=1.5: expected int'),
  (['train', 'digits_mlp:tiny', '--trials=3'], '--trials: expected one of the modes'),
])  # fmt: skip
def test_refusals(arguments, message, capsys, tmp_path):
  assert cli.main([*arguments, f'--workdir={tmp_path / "sweep"}']) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'sweep').exists()


def test_an_object_store_is_refused(capsys):
  assert cli.main([*RECIPE, PEAK, '--trials=1', '--workdir=gs://bucket/sweep']) == 2
  assert 'expected a path of this machine' in capsys.readouterr().err


def test_without_optuna(monkeypatch, capsys):
  monkeypatch.setattr(sweep.importlib.util, 'find_spec', lambda name: None)
  assert cli.main([*RECIPE, PEAK, '--trials=1']) == 2
  assert "pip install 'bmx-jax[sweep]'" in capsys.readouterr().err


def test_a_sweep_resumes(tmp_path, capsys):
  """The second command adds one trial; the command of the best one is understood."""
  pytest.importorskip('optuna')
  words = [*RECIPE, PEAK, WIDTHS, f'--workdir={tmp_path}']
  for trials in (3, 4):
    assert cli.main([*words, f'--trials={trials}']) == 0
    runs = sorted(p.name for p in (tmp_path / 'trials').iterdir())
    assert runs == [str(i) for i in range(trials)]
  lines = [json.loads(p.read_text())['metrics'] for p in tmp_path.glob('trials/*/summary.json')]
  assert not [k for line in lines for k in line if k.startswith('eval/test')]
  best = json.loads((tmp_path / 'best.json').read_text())
  found = [
    json.loads(line)['eval/valid/loss']
    for path in tmp_path.glob('trials/*/metrics.jsonl')
    for line in path.read_text().splitlines()
    if 'eval/valid/loss' in line
  ]
  assert best['value'] == min(found)
  args, overrides = argument_parser.parse(cli.translate(shlex.split(best['command'])[1:]), 'bmx')
  made, _ = config.load(args.config, overrides)
  assert made.schedule.peak == best['words']['schedule.peak']
  assert str(made.task.model.widths).replace(' ', '') == best['words']['task.model.widths']
  assert 'parcoords' in (tmp_path / 'sweep.html').read_text()
  capsys.readouterr()
  assert cli.main([*words, '--trials=5', '--seed=3']) == 2
  assert 'expected the command of its sweep' in capsys.readouterr().err
  (tmp_path / 'study.log').write_text('{"a": 1}\n')
  assert cli.main([*words, '--trials=5']) == 2
  assert 'expected the journal of a sweep' in capsys.readouterr().err


def test_words_follow_from_the_seed_and_the_number_of_a_trial(tmp_path):
  """Also those of a sweep that another process continues."""
  optuna = pytest.importorskip('optuna')
  overrides = [word.removeprefix('--') for word in [*RECIPE[2:], PEAK, WIDTHS]]

  def drawn(*words):
    fixed, spaces = split([*overrides, *words])
    made, name = config.load('digits_mlp:tiny', fixed)
    request = sweep.Request(made, name, spaces=tuple(spaces))
    study = optuna.create_study()
    trials = []
    for _ in range(3):
      trials.append(sweep.draw(study, request).params)
      study.sampler = optuna.samplers.RandomSampler()  # what a new process begins with
    return trials

  first = drawn('seed=1')
  assert first == drawn('seed=1') != drawn('seed=2')
  assert len({trial['schedule.peak'] for trial in first}) == 3
  assert all(1e-4 <= trial['schedule.peak'] <= 1e-2 for trial in first)


class Stub:
  """A trial that is pruned at its first report."""

  def __init__(self):
    self.reports = []

  def report(self, value, step):
    self.reports.append((value, step))

  def should_prune(self):
    return True


def test_a_pruned_trial_stops_and_a_failing_one_is_recorded(tmp_path, monkeypatch):
  optuna = pytest.importorskip('optuna')
  monkeypatch.setattr(optuna.pruners, 'MedianPruner', lambda: optuna.pruners.NopPruner())
  stub = Stub()
  overrides = [w.removeprefix('--') for w in RECIPE[2:]]
  made, name = config.load('digits_mlp:tiny', overrides)
  x = sweep.experiments.build(sweep.without_test(made), name)
  hook = sweep.Prune(stub, 'eval/valid/loss')
  summary = sweep.loop.run(x, tmp_path / 'run', {'sweep': Hook(2, hook)})
  assert hook.pruned and summary['steps'] == 2 and summary['stopped_early']
  assert [step for _, step in stub.reports] == [2]
  # Batches of 60 rows do not fit 8 devices; those of 64 train.
  space = '--batch_size=choice(60,64)'
  cli.main([*RECIPE, space, '--trials=4', f'--workdir={tmp_path / "sweep"}'])
  log = (tmp_path / 'sweep/study.log').read_text()
  assert log.count('"error"') == 4 - len(list((tmp_path / 'sweep/trials').glob('*/summary.json')))
