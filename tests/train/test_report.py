"""report.html of a run: while it continues, after an interrupt and an error, after restarts."""

import os
import signal

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import Preempted
from bmx.core.events import Hook
from bmx.runtime.report import layout, starts
from bmx.train import loop
from bmx.train.summary import closing
from tests.runtime.test_report import figures, parse
from tests.tasks.test_illustrations import Cells


def build(*words):
  config, name = recipes.load('digits_mlp:tiny', ['mesh.data=1', 'every.save=0', *words])
  return experiment.build(config, name, jax.devices()[:1])


def test_a_report_at_marks_and_after_every_end(tmp_path):
  workdir, seen = tmp_path / 'run', []

  def read():
    return ' '.join(parse((workdir / 'report.html').read_text()).text)

  def stop(event):
    seen.append(read())
    os.kill(os.getpid(), signal.SIGTERM)

  def fail(event):
    seen.append(read())
    raise ValueError('of the user')

  with pytest.raises(Preempted):
    loop.run(build(), workdir, {'stop': Hook((8,), stop)})
  assert 'running' in seen[0]
  page = read()
  reached = starts.read(workdir)[0].reached
  assert 8 <= reached < 20
  assert f'stopped and saved at step {reached}' in page and 'training loss' in page
  with pytest.raises(ValueError):
    loop.run(build('steps=40'), workdir, {'fail': Hook((16,), fail)})
  assert 'running' in seen[1] and 'eval/test/accuracy' in seen[1]
  assert 'ended by ValueError' in read()
  summary = loop.run(build('steps=40'), workdir)
  text = (workdir / 'report.html').read_text()
  page = read()
  assert f'finished · begun {layout.day(starts.read(workdir)[0].began)}' in page
  assert 'steps: 20 → 40' in page and 'learning rate there' in page
  begun = starts.read(workdir)
  assert [(s.step, s.reached) for s in begun] == [(0, reached), (reached, 16), (16, 40)]
  # What the killed starts did after their checkpoints is in no summary.
  assert sum(s.ended - s.began for s in begun) >= summary['seconds'] - 0.1
  parts = summary['seconds_by_part']
  assert abs(sum(parts.values()) - summary['seconds']) < 0.002
  assert min(parts['train'], parts['compile'], parts['save']) > 0
  assert summary['hook_seconds']['evaluate'] < parts['evaluate'] + parts['compile']
  assert f'({", ".join(f"{k} {v:.1f}" for k, v in parts.items() if v >= 0.05)})' in closing(
    summary, workdir
  )
  rows = Cells(text[text.index('<table class="matrix">') :].partition('</table>')[0]).rows[1:]
  counts = np.array([[int(cell or 0) for cell in row[1:]] for row in rows])
  assert counts.sum() == 360
  assert counts.trace() / 360 == pytest.approx(summary['metrics']['eval/test/accuracy'], abs=1e-6)
  pytest.importorskip('plotly', reason='the extra `report` is not installed')
  marks = [(s['x0'], s['line']['dash']) for s in figures(text)[0]['layout']['shapes']]
  assert marks == [(reached, 'dot'), (reached, 'dash'), (16, 'dot')]
