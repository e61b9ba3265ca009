"""Pages that compare runs."""

import json

import pytest

from bmx import cli
from bmx.core.errors import InputError
from bmx.modes import compare
from tests.runtime.test_report import EVIL, figures, parse


def write(folder, rate, losses, **words):
  folder.mkdir(parents=True)
  config = {'schedule': {'peak': rate}, 'seed': 0, **words}
  (folder / 'config.json').write_text(json.dumps({'config': config}))
  lines = [{'step': 10 * i, 'loss': loss} for i, loss in enumerate(losses, 1)]
  lines.append({'step': 10 * len(losses), 'eval/valid/accuracy': rate, 'eval/test/loss': 1.5})
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
  (folder / 'summary.json').write_text(json.dumps({'seconds': 12.5, 'parameters': 1000}))
  return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return [
    write(tmp_path / 'runs/a', 0.5, [3.0, 1.0, 2.0]),
    write(tmp_path / 'runs/b/1', 0.25, [3.0, 2.0], extra=EVIL),
  ]


def read(folders):
  named = zip(folders, compare.names(folders), strict=True)
  return [compare.read(folder, name) for folder, name in named]


def test_words_that_differ_and_results(runs):
  a, b = read(runs)
  page = compare.compare
  assert page.differing([a, b]) == [('extra', '(absent)', EVIL), ('schedule.peak', '0.5', '0.25')]
  head, rows = page.results([a, b])
  assert dict(zip(head, rows[0], strict=True)) == {
    'run': 'a', 'loss': '2', 'best': '1', 'eval/valid/accuracy': '0.5', 'eval/test/loss': '1.5',
    'steps': '30', 'seconds': '12.5', 'parameters': '1,000',
  }  # fmt: skip
  assert rows[1][:3] == ('b/1', '2', '2')
  assert page.differing([a, a]) == []


def test_the_page_overlays_curves_and_escapes_names(runs):
  text = compare.compare.page(read(runs))
  parsed = parse(text)
  assert parsed.found == []
  words = ''.join(parsed.text)
  for word in ('2 runs', 'schedule.peak', '0.25', 'b/1', 'accuracy (valid)', EVIL.split('&')[0]):
    assert word in words
  pytest.importorskip('plotly', reason='the extra `report` is not installed')
  (loss, *_) = figures(text)
  assert [(t['name'], t['y']) for t in loss['data']] == [('a', [3, 1, 2]), ('b/1', [3, 2])]
  colours = {t['name']: {t['line']['color']} for t in loss['data']}
  assert colours['a'] != colours['b/1']
  assert all(t['line']['color'] in colours[t['name']] for f in figures(text) for t in f['data'])


def test_runs_that_cannot_be_compared(runs, tmp_path):
  for folders, message in (
    ([runs[0], runs[0]], 'named twice'),
    ([runs[0], tmp_path / 'none'], r'none/config\.json: expected the config of a run'),
  ):
    with pytest.raises(InputError, match=message):
      read(folders)


@pytest.mark.parametrize('text', ['', '[]', '{"config": 3}', '{"config": {"a": ' + '[' * 2000])
def test_configs_of_others(runs, text):
  (runs[0] / 'config.json').write_text(text)
  with pytest.raises(InputError, match='expected the config of a run'):
    read(runs)


def test_the_command(runs, tmp_path, capsys):
  """It prints both tables, replaces its own page, and no other file."""
  command = ['compare', 'runs/a', 'runs/b/1']
  for _ in range(2):
    assert cli.main(command) == 0
  out = capsys.readouterr().out
  assert out.count('schedule.peak  0.5') == 2 and '\x1b' not in out and '<title>' not in out
  assert str(tmp_path / 'compare.html') in out
  (tmp_path / 'compare.html').write_text('of somebody')
  assert cli.main(command) == 2
  assert 'is not a comparison of bmx; move it away' in capsys.readouterr().err
  assert (tmp_path / 'compare.html').read_text() == 'of somebody'
  assert cli.main([*command, '--output=runs/both.html']) == 0
  assert '<title>' in (tmp_path / 'runs/both.html').read_text()
  for name in ('both.txt', 'none/both.html'):
    assert cli.main([*command, f'--output={name}']) == 2
    assert f'--output={name}: expected a name that ends with .html' in capsys.readouterr().err
  assert cli.main(['compare', 'runs/a']) == 2
  assert 'bmx compare RUN RUN' in capsys.readouterr().err
