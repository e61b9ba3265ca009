"""Full and odd disks: no write of a run ends the training, or loses what was complete."""

import dataclasses
import errno
import json
import math
import os
import pathlib
import shutil

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import Stop
from bmx.runtime import files
from bmx.train import loop, summary
from bmx.train.checkpoint import Checkpoints
from tests.test_bad_input import DIGITS, call


def build(*words):
  config, name = recipes.load(DIGITS, ['mesh.data=1', 'every.eval=10', *words])
  x = experiment.build(config, name, jax.devices()[:1])
  nothing = {'nothing': lambda state: {'eval/nothing/value': math.nan}}
  return dataclasses.replace(x, evals={**x.evals, **nothing})


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of 20 steps and its summary."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  return workdir, loop.run(build(), workdir)


@pytest.fixture
def run(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / 'run')
  return tmp_path / 'run'


def strict(path):
  """Lines, or the one value, of a file, as a parser without NaN reads them."""

  def refuse(constant):
    raise AssertionError(f'{path}: {constant}')

  text = path.read_text()
  parts = text.splitlines() if path.suffix == '.jsonl' else [text]
  return [json.loads(part, parse_constant=refuse) for part in parts]


def test_files_of_a_run_are_json_for_every_parser(finished):
  workdir, found = finished
  paths = [p for p in workdir.rglob('*') if p.suffix in ('.json', '.jsonl')]
  assert {'metrics.jsonl', 'loop.json', '20.after.json'} < {p.name for p in paths}
  values = [line.get('eval/nothing/value') for p in paths for line in strict(p)]
  assert values.count('NaN') == 2
  assert math.isnan(found['metrics']['eval/nothing/value'])
  assert strict(workdir / 'summary.json')[0]['metrics']['eval/nothing/value'] == 'NaN'


@pytest.mark.parametrize('lines', ['', '{"step": 5, "loss": 1.25}\n{"ste', '[1]\n\x00'])
def test_a_report_that_was_not_written_is_made_again(lines, run):
  """Killed between summary.json and report.html; metrics.jsonl is damaged besides."""
  (run / 'report.html').unlink()
  (run / 'metrics.jsonl').write_text(lines)
  assert loop.run(build(), run)['steps'] == 20
  assert '<h2>Results</h2>' in (run / 'report.html').read_text()


def test_reports_and_sections_that_cannot_be_written_end_nothing(run, finished, caplog):
  for name in ('report.html', 'sections.json'):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    (run / name / 'in the way').touch()
  (run / 'checkpoints/40.after.json').mkdir()
  with caplog.at_level('ERROR', logger='bmx'):
    assert loop.run(build('steps=40'), run)['steps'] == 40
  assert caplog.text.count('report.html cannot be written') == 1
  assert Checkpoints(run / 'checkpoints').newest_valid() == 40


def test_a_summary_that_cannot_be_written(run, finished, monkeypatch):
  (run / 'summary.json').unlink()

  def full(path, value):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  monkeypatch.setattr(summary, 'write_json', full)
  with pytest.raises(Stop, match=r'summary\.json cannot be written.*step 20 is on disk') as stop:
    loop.run(build(), run)
  assert stop.value.code == 1
  monkeypatch.undo()
  assert loop.run(build(), run)['state_digest'] == finished[1]['state_digest']


def test_the_first_write_on_a_full_disk_is_one_message(tmp_path, monkeypatch, capsys):
  """The same command continues when there is space; files of a killed start are ours."""
  workdir = tmp_path / 'run'

  def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(files.os, 'fsync', full)
  command = [
    f'--config={DIGITS}',
    '--config.steps=3',
    '--config.mesh.data=8',
    f'--workdir={workdir}',
  ]
  assert call(command) == 1
  error = capsys.readouterr().err
  assert 'No space left on device' in error and 'Traceback' not in error
  assert {p.name for p in workdir.iterdir()} <= {'checkpoints', 'lock'}
  monkeypatch.undo()
  for name in ('config.json.0123abcd.part', 'config.json.part', '.probe'):
    pathlib.Path(workdir, name).touch()
  assert call(command) == 0
