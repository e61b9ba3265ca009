"""report.html: what it shows, and that it needs nothing from outside."""

import base64
import gzip
import html.parser
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.runtime import report
from bmx.runtime.report import curves, fragments, plots, starts, svg

LINES = [
  {'step': 10, 'time': 1.0, 'loss': 2.0, 'learning_rate': 0.1, 'step_seconds': 0.5,
   'tokens_per_second': 100.0, 'skipped': 0},
  {'step': 20, 'time': 2.0, 'loss': math.nan, 'learning_rate': 0.05, 'step_seconds': 0.5,
   'tokens_per_second': 110.0, 'skipped': 0},
  {'step': 20, 'time': 2.5, 'eval/valid/loss': 1.5, 'eval/valid/accuracy': 0.5,
   'eval/test/loss': 1.75},
  {'step': 30, 'time': 3.5, 'eval/valid/loss': 1.25, 'eval/valid/accuracy': 0.25},
]  # fmt: skip


@pytest.fixture
def plain(monkeypatch):
  """An installation without plotly."""
  monkeypatch.setattr(plots, 'has_plotly', lambda: False)


def points(chart):
  return {k: list(zip(c.steps, c.values, strict=True)) for k, c in chart.items()}


def test_one_chart_a_metric_one_curve_a_split():
  charts = curves.charts(LINES)
  valid = [(20, 1.5), (30, 1.25)]
  assert points(charts['loss']) == {'train': [(10, 2.0)], 'valid': valid, 'test': [(20, 1.75)]}
  assert points(charts['accuracy']) == {'valid': [(20, 0.5), (30, 0.25)]}
  assert points(charts['learning_rate']) == {'train': [(10, 0.1), (20, 0.05)]}
  assert points(charts['tokens_per_second']) == {'train': [(10, 100.0), (20, 110.0)]}


def test_loss_first_then_accuracy_and_no_times():
  names = list(curves.charts(LINES))
  assert names[:2] == ['loss', 'accuracy']
  assert not {'time', 'step', 'step_seconds', 'step seconds'} & set(names)


def test_skipped_steps_show_where_there_were_any():
  assert 'skipped' not in curves.charts(LINES)
  charts = curves.charts([*LINES, {'step': 30, 'skipped': 2}])
  assert points(charts['skipped'])['train'][-1] == (30, 2)


def test_no_lines_no_charts():
  assert curves.charts([]) == {}


def test_many_points_become_means_between_their_extremes():
  """Against numpy on the points themselves; the page stays small, and says so."""
  values = np.random.default_rng(0).lognormal(size=100_000)
  curve = curves.thin(list(enumerate(values.tolist(), 1)))
  assert len(curve.steps) == curves.MAX_POINTS and curve.steps[-1] == 100_000
  groups = values.reshape(curves.MAX_POINTS, -1)
  np.testing.assert_allclose(curve.values, groups.mean(1), rtol=1e-12)
  assert list(curve.low) == groups.min(1).tolist()
  assert list(curve.high) == groups.max(1).tolist()
  assert curve.last == values[-1]


def test_the_page_of_many_steps_is_small(tmp_path):
  lines = ({'step': s, 'loss': 1 / s, 'grad_norm': s % 7, 'time': s} for s in range(1, 20_001))
  text = page(tmp_path, lines)
  library = re.search(r'id="plotly">([^<]*)<', text)
  assert len(text) - len(library.group(1) if library else '') < 200_000
  assert 'each point is the mean of up to 25 of them' in text


def test_best_values_follow_their_direction_and_never_the_test_set():
  found = curves.results(LINES, {})
  assert found['eval/valid/loss'] == curves.Result(1.25, 1.25, 30)
  assert found['eval/valid/accuracy'] == curves.Result(0.25, 0.5, 20)
  assert found['eval/test/loss'] == curves.Result(1.75)
  assert found['learning_rate'] == curves.Result(0.05)
  assert found['loss'].best == 2.0 and math.isnan(found['loss'].newest)
  keep = {'keep': {'metric': 'learning_rate', 'mode': 'max'}}
  assert curves.results(LINES, keep)['learning_rate'].best == 0.1


def test_the_headline_is_the_followed_metric_then_quality_of_validation():
  found = curves.results(LINES, {})
  assert curves.headline(found, {}) == 'eval/valid/accuracy'
  assert curves.headline(found, {'stop': {'metric': 'eval/valid/loss'}}) == 'eval/valid/loss'
  only = {k: v for k, v in found.items() if 'valid' not in k}
  assert curves.headline(only, {}) == 'eval/test/loss'
  assert curves.headline({'loss': found['loss']}, {}) == 'loss'
  assert curves.headline({}, {}) == ''


@pytest.mark.parametrize(('low', 'high', 'expected'), [
  (0, 10, [0, 2, 4, 6, 8, 10]),
  (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
  (-1, 1, [-1, -0.5, 0, 0.5, 1]),
  (0.13, 0.87, [0.2, 0.4, 0.6, 0.8]),
  (990, 1010, [990, 995, 1000, 1005, 1010]),
  (0, 1e-13, [0, 2e-14, 4e-14, 6e-14, 8e-14, 1e-13]),
])  # fmt: skip
def test_ticks(low, high, expected):
  assert svg.ticks(low, high) == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize('low', [-3e5, -0.37, 0.0, 1e-4, 7.0, 123456.0])
@pytest.mark.parametrize('span', [1e-3, 0.99999, 1.0, 3.3, 4.9999, 1e4, 7e8])
def test_ticks_are_few_round_and_inside(low, span):
  ticks = svg.ticks(low, low + span)
  assert 2 <= len(ticks) <= 7
  assert ticks == sorted(set(ticks))
  assert low - 1e-9 * span <= ticks[0] + 1e-8
  assert ticks[-1] <= low + span * (1 + 1e-6)
  step = ticks[1] - ticks[0]
  leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
  assert min(abs(leading - m) for m in (1, 2, 5)) < 1e-3


class Outside(html.parser.HTMLParser):
  """Collects what would make a browser fetch something or run a script; checks that tags close."""

  VOID = ('meta', 'link', 'img', 'br', 'hr', 'input', 'col', 'wbr')

  def __init__(self):
    super().__init__()
    self.found, self.open, self.text, self.scripts = [], [], [], []

  def handle_starttag(self, tag, attrs):
    names = ('src', 'href', 'srcset', 'xlink:href', 'data', 'action', 'poster')
    self.found += [(tag, k) for k, v in attrs if k in names and not v.startswith('data:image/')]
    self.found += [k for k, _ in attrs if k.startswith('on')]
    self.found += [tag] if tag in ('link', 'iframe', 'object', 'embed', 'base') else []
    if tag == 'script':
      self.scripts.append(dict(attrs))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'script' not in self.open:
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


def figures(text):
  return json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL).group(1))


def test_the_page_needs_nothing_from_outside(tmp_path, plain):
  text = page(tmp_path, LINES)
  assert 'http' not in re.sub('http-equiv', '', text)
  assert 'src=' not in text
  assert 'url(' not in text
  assert '@import' not in text
  assert parse(text).found == []


def test_the_policy_runs_the_script_of_the_page_alone(tmp_path):
  pytest.importorskip('plotly', reason='the extra `report` is not installed')
  text = page(tmp_path, LINES)
  assert "content=\"default-src 'none'; " in text
  nonce = re.search(r"script-src 'nonce-([\w-]{20,})'", text).group(1)
  assert f"script-src 'nonce-{nonce}'; base-uri" in text
  parsed = parse(text)
  assert parsed.found == []
  run = [s for s in parsed.scripts if s.get('type') not in ('application/json', 'text/plain')]
  assert run == [{'nonce': nonce}]
  assert nonce not in page(tmp_path, LINES)


def test_the_page_says_what_happened(tmp_path):
  text = ' '.join(parse(page(tmp_path, LINES, 'my-run', 'A small model')).text)
  words = 'my-run', 'A small model', 'loss', 'accuracy', 'learning rate', 'valid', 'steps', '0.5'
  for word in (*words, 'best 0.5 at step 20'):
    assert word in text
  assert 'note' not in text


def test_figures_are_plotlys_and_hold_every_point(tmp_path):
  """The classes of plotly refuse an unknown property."""
  graphs = pytest.importorskip('plotly.graph_objects', reason='the extra `report` is missing')
  long = [{'step': s, 'long': float(s % 5)} for s in range(1, 2001)]
  starts.begin(tmp_path, 0, 0.0)
  starts.begin(tmp_path, 15, 5.0, [('steps', 20, 30)], (0.1, 0.2))
  text = page(tmp_path, [*LINES, *long])
  made = figures(text)
  assert len(made) == text.count('class="plot"') == len(curves.charts([*LINES, *long]))
  for one in made:
    graphs.Figure(**one)
    assert [s['x0'] for s in one['layout']['shapes']] == [15, 15]
  assert made[0]['data'][0]['x'] == [10] and made[0]['data'][1]['y'] == [1.5, 1.25]
  roles = [t['meta']['role'] for one in made for t in one['data'] if len(one['data']) == 3]
  assert roles[-3:] == ['band', 'line', 'smooth']
  for word in ('steps: 20 → 30', 'learning rate there 0.1 → 0.2', 'Dotted lines'):
    assert word in ' '.join(parse(text).text)


def test_the_script_of_the_page_is_plotlys_own():
  plotly = pytest.importorskip('plotly.offline', reason='the extra `report` is missing')
  assert gzip.decompress(base64.b64decode(plots.library())).decode() == plotly.get_plotlyjs()


EVIL = '</script><script>alert(1)</script>&"\'<!--\ud800'


@pytest.mark.parametrize('library', [True, False])
def test_names_cannot_break_the_page(library, tmp_path, monkeypatch):
  if not library:
    monkeypatch.setattr(plots, 'has_plotly', lambda: False)
  lines = [{'step': 1, 'loss': 1.0, f'eval/{EVIL.replace("/", "")}/loss': 2.0, EVIL: 3.0}]
  starts.begin(tmp_path, 0, 0.0, [(EVIL, EVIL, EVIL)])
  starts.begin(tmp_path, 1, 0.0, [(EVIL, EVIL, EVIL)])
  report.keep_sections(tmp_path, EVIL, report.Section(EVIL, EVIL))
  parsed = parse(page(tmp_path, lines, EVIL, EVIL, {'metrics': {EVIL: 1.0}, 'device': EVIL}))
  assert parsed.found == []
  assert len(parsed.scripts) == (3 if library and plots.has_plotly() else 0)
  assert EVIL.replace('\ud800', '?') in ''.join(parsed.text)


@pytest.mark.parametrize(('fragment', 'expected'), [
  ('<p class="n">a &amp; b</p>', '<p class="n">a &amp; b</p>'),
  ('<b>open <td>', '<b>open <td></td></b>'),
  ('</div></body>text', 'text'),
  ('<img src="x.png" onerror="f()" alt="y">', '<img alt="y">'),
  ('<img src="data:image/png;base64,AAAA">', '<img src="data:image/png;base64,AAAA">'),
  ('<img src="data:image/svg+xml;base64,AAAA">', '<img>'),
  ('<a href="javascript:f()">x</a>', '<a>x</a>'),
  ('<p style="background: url(x)">x</p>', '<p>x</p>'),
  ('<p style="position: fixed">x</p>', '<p>x</p>'),
  ('<i style="height: 5%; --share: 3%"></i>', '<i style="height: 5%; --share: 3%"></i>'),
  ('<style>p{}</style><script>f()</script><svg><script>f()</script></svg>', '<svg></svg>'),
  ('<meta http-equiv="refresh" content="0"><form action="x"><input></form>', ''),
  ('<svg viewBox="0 0 1 1"><use href="x"/><path fill="url(//x)" d="M0"/></svg>',
   '<svg viewBox="0 0 1 1"><path d="M0"></path></svg>'),
])  # fmt: skip
def test_fragments_are_cut_to_what_is_harmless(fragment, expected):
  assert fragments.clean(fragment) == expected


TEXT = st.text(st.sampled_from('<>/!?-[]"\'= abpscript&;#x0'), max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_any_fragment_is_whole_and_stays_what_it_is(fragment):
  cleaned = fragments.clean(fragment)
  assert parse(f'<div>{cleaned}</div>').scripts == []
  assert fragments.clean(cleaned) == cleaned


JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just(10**400),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
  max_leaves=6,
)
LINE = st.fixed_dictionaries({'step': st.integers()}, optional={'loss': JSON, 'eval/a/b': JSON})


@settings(max_examples=50, deadline=None)
@given(st.lists(LINE, max_size=4), JSON, JSON, JSON)
def test_files_of_others_make_a_page(tmp_path_factory, lines, config, begun, sections):
  folder = tmp_path_factory.mktemp('run')
  for name, value in (('config', config), ('starts', {'starts': begun}), ('sections', sections)):
    (folder / f'{name}.json').write_text(json.dumps(value))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, 'library', lambda: '')
    report.write(folder, 'run', {'metrics': {}})
  assert parse((folder / 'report.html').read_text()).found == []


def test_points_lie_where_they_should(tmp_path, plain):
  """The loss falls, so its line goes down: y grows downwards in SVG, x grows with the step."""
  text = page(tmp_path, [{'step': s, 'loss': 5.0 - s} for s in range(4)])
  given = text.split('points="')[1].split('"')[0].split()
  x, y = zip(*[map(float, p.split(',')) for p in given], strict=True)
  assert x == pytest.approx([svg.LEFT + i * (x[-1] - x[0]) / 3 for i in range(4)], abs=0.2)
  assert y == pytest.approx([y[0] + i * (y[-1] - y[0]) / 3 for i in range(4)], abs=0.2)
  assert 0 <= y[0] < y[-1] <= svg.HEIGHT
  assert 0 <= x[0] < x[-1] <= svg.WIDTH
  assert "pip install 'bmx-jax[report]'" in text


@pytest.mark.parametrize('value', [0.0, 1e-13, -4.0, 1e17, -3e38])
def test_a_curve_of_one_value_has_a_page(tmp_path, plain, value):
  lines = [{'step': s, 'loss': value} for s in (1, 2)]
  assert 'polyline' in page(tmp_path, lines)


def test_an_empty_run_has_a_page(tmp_path):
  parse(page(tmp_path, [], summary={'metrics': {}}))


def test_reports_take_a_small_share_of_the_time(tmp_path):
  """After one that takes 3 s the next is due in 60 s, after a quick one in 20 s."""
  times = iter([0.0, 3.0, 62.9, 63.1, 22.9, 23.1])
  reports = report.Reports(lambda: next(times))
  reports.write(tmp_path, 'run', {'metrics': {}})
  assert [reports.due(20.0), reports.due(20.0)] == [False, True]
  reports.cost = 0.01
  assert [reports.due(20.0), reports.due(20.0)] == [False, True]
