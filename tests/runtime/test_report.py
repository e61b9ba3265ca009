"""report.html: what it shows, and that it needs nothing from outside."""

import html.parser
import json
import math

import pytest

from bmx.runtime import report

LINES = [
  {'step': 10, 'time': 1.0, 'loss': 2.0, 'learning_rate': 0.1, 'step_seconds': 0.5,
   'tokens_per_second': 100.0, 'skipped': 0},
  {'step': 20, 'time': 2.0, 'loss': math.nan, 'learning_rate': 0.05, 'step_seconds': 0.5,
   'tokens_per_second': 110.0, 'skipped': 0},
  {'step': 20, 'time': 2.5, 'eval/valid/loss': 1.5, 'eval/valid/accuracy': 0.5,
   'eval/test/loss': 1.75},
]  # fmt: skip


def test_one_chart_a_metric_one_series_a_split():
  charts = report.charts(LINES)
  assert charts['loss'] == {'train': [(10, 2.0)], 'valid': [(20, 1.5)], 'test': [(20, 1.75)]}
  assert charts['accuracy'] == {'valid': [(20, 0.5)]}
  assert charts['learning_rate'] == {'train': [(10, 0.1), (20, 0.05)]}
  assert charts['tokens per second'] == {'train': [(10, 100.0), (20, 110.0)]}


def test_loss_first_then_accuracy_and_no_times():
  names = list(report.charts(LINES))
  assert names[:2] == ['loss', 'accuracy']
  assert not {'time', 'step', 'step_seconds', 'step seconds'} & set(names)


def test_skipped_steps_show_where_there_were_any():
  assert 'skipped' not in report.charts(LINES)
  assert report.charts([*LINES, {'step': 30, 'skipped': 2}])['skipped']['train'][-1] == (30, 2)


def test_no_lines_no_charts():
  assert report.charts([]) == {}


@pytest.mark.parametrize(('low', 'high', 'expected'), [
  (0, 10, [0, 2, 4, 6, 8, 10]),
  (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
  (-1, 1, [-1, -0.5, 0, 0.5, 1]),
  (0.13, 0.87, [0.2, 0.4, 0.6, 0.8]),
  (990, 1010, [990, 995, 1000, 1005, 1010]),
  (0, 1e-13, [0, 2e-14, 4e-14, 6e-14, 8e-14, 1e-13]),
])  # fmt: skip
def test_ticks(low, high, expected):
  assert report.ticks(low, high) == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize('low', [-3e5, -0.37, 0.0, 1e-4, 7.0, 123456.0])
@pytest.mark.parametrize('span', [1e-3, 0.99999, 1.0, 3.3, 4.9999, 1e4, 7e8])
def test_ticks_are_few_round_and_inside(low, span):
  ticks = report.ticks(low, low + span)
  assert 2 <= len(ticks) <= 7
  assert ticks == sorted(set(ticks))
  assert low - 1e-9 * span <= ticks[0] + 1e-8
  assert ticks[-1] <= low + span * (1 + 1e-6)
  step = ticks[1] - ticks[0]
  leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
  assert min(abs(leading - m) for m in (1, 2, 5)) < 1e-3


class Outside(html.parser.HTMLParser):
  """Collects what would make a browser fetch something, and checks that tags close."""

  VOID = ('meta', 'link', 'img', 'br', 'hr', 'input')

  def __init__(self):
    super().__init__()
    self.found, self.open, self.text = [], [], []

  def handle_starttag(self, tag, attrs):
    names = ('src', 'href', 'srcset', 'xlink:href', 'data', 'action', 'poster')
    self.found += [(tag, k) for k, _ in attrs if k in names]
    self.found += [tag] if tag in ('script', 'link', 'iframe', 'object', 'embed', 'img') else []
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def page(folder, lines, name='run', about='', summary=None):
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)
  (folder / 'config.json').write_text(json.dumps({'config': {'description': about, 'seed': 0}}))
  report.write(folder, name, summary or {'metrics': {'loss': 1.5}, 'steps': 20, 'note': None})
  return (folder / 'report.html').read_text()


def parse(text):
  parser = Outside()
  parser.feed(text)
  assert not parser.open
  return parser


def test_the_page_needs_nothing_from_outside(tmp_path):
  text = page(tmp_path, LINES)
  assert 'http' not in text
  assert 'src=' not in text
  assert 'url(' not in text
  assert '@import' not in text
  assert parse(text).found == []


def test_the_page_says_what_happened(tmp_path):
  text = ' '.join(parse(page(tmp_path, LINES, 'my-run', 'A small model')).text)
  for word in ('my-run', 'A small model', 'loss', 'accuracy', 'learning rate', 'valid', 'steps'):
    assert word in text
  assert 'note' not in text


def test_names_cannot_break_the_page(tmp_path):
  evil = '<script>alert(1)</script>&'
  lines = [{'step': 1, 'loss': 1.0, f'eval/{evil.replace("/", "")}/loss': 2.0}]
  summary = {'metrics': {evil: 1.0}, 'device': evil}
  parsed = parse(page(tmp_path, lines, evil, evil, summary))
  assert parsed.found == []
  assert evil in ''.join(parsed.text)


def test_points_lie_where_they_should(tmp_path):
  """The loss falls, so its line goes down: y grows downwards in SVG, x grows with the step."""
  lines = [{'step': s, 'loss': 5.0 - s} for s in range(4)]
  text = page(tmp_path, lines)
  points = text.split('points="')[1].split('"')[0].split()
  x, y = zip(*[map(float, p.split(',')) for p in points], strict=True)
  assert x == pytest.approx([report.LEFT + i * (x[-1] - x[0]) / 3 for i in range(4)], abs=0.2)
  assert y == pytest.approx([y[0] + i * (y[-1] - y[0]) / 3 for i in range(4)], abs=0.2)
  assert 0 <= y[0] < y[-1] <= report.HEIGHT
  assert 0 <= x[0] < x[-1] <= report.WIDTH


@pytest.mark.parametrize('value', [0.0, 1e-13, -4.0, 1e17, -3e38])
def test_a_curve_of_one_value_has_a_page(tmp_path, value):
  lines = [{'step': s, 'loss': value} for s in (1, 2)]
  assert 'polyline' in page(tmp_path, lines)


def test_an_empty_run_has_a_page(tmp_path):
  parse(page(tmp_path, [], summary={'metrics': {}}))
