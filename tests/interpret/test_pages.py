"""Pages of runs: `bmx explain` of a table, images and texts, slices of `bmx eval`, model cards."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from bmx.data.text.tokenizer import Bytes
from bmx.interpret import pictures
from bmx.modes.card import Facts, card, recorded
from bmx.runtime.markdown import Part, markdown
from bmx.runtime.markdown import page as page_of
from bmx.tasks.scores import wilson
from tests.conftest import own_logging

ROWS = 120


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Runs of a table whose class is one column, of images, and of texts with one telling word."""
  from bmx.cli import main

  folder = tmp_path_factory.mktemp('runs')
  random = np.random.default_rng(0)
  age, city = random.integers(20, 70, ROWS), random.choice(['a<b', 'c', 'd'], ROWS)
  lines = [f'{a},{c},{"yes" if a > 45 else "no"}' for a, c in zip(age, city, strict=True)]
  (folder / 't.csv').write_text('\n'.join(['age,city,bought', *lines]))
  lines = ['Ann B-PER\nsaw O\nRome B-LOC\n', 'Bob B-PER\nslept O\n'] * 12
  (folder / 'tags.conll').write_text('\n'.join(lines))
  words = random.choice(['red', 'blue', 'tree', 'sky'], (ROWS, 3))
  good = random.random(ROWS) < 0.5
  ends = [f'{"good" if g else "bad"},{int(g)}' for g in good]
  lines = [f'{" ".join(three)} {end}' for three, end in zip(words, ends, strict=True)]
  (folder / 'x.csv').write_text('\n'.join(['text,label', *lines]))
  cache, cold = f'--cache={folder / "cache"}', ['--schedule.warmup=0']
  commands = {
    'table': ['table', f'--data.path={folder / "t.csv"}', '--data.target=bought', '--epochs=0',
              '--steps=80', '--batch_size=32', '--schedule.peak=0.02', '--every.eval=0',
              '--task.model.widths=(16,)'],
    'images': ['mnist_cnn:tiny', '--steps=4', '--every.save=2', '--keep.last=2'],
    'clicks': ['criteo_deepfm:tiny', f'--data.path={folder / "t.csv"}', '--steps=4',
               '--data.call=bmx.data.recommend.clicks:clicks', '--data.target=bought',
               '--data.min_count=1', '--eval.valid.batch_size=24', '--every.save=4'],
    'masks': ['mnist_segment:tiny', '--steps=2', '--every.save=2', *cold],
    'boxes': ['mnist_detect:tiny', '--steps=2', '--every.save=2', *cold],
    'tags': ['bert_finetune:tiny', f'--data.path={folder / "tags.conll"}', '--steps=2',
             '--data.call=bmx.data.text.token_classification:token_classification',
             '--task.call=bmx.tasks.encoder:TokenClassification', '--batch_size=8',
             '--task.model.call=bmx.models.bert:Tagger', '--eval.valid.metrics=()',
             '--keep.metric=', '--task.model.encoder.width=16', *cold],
    'texts': ['text', f'--data.path={folder / "x.csv"}', '--steps=12', '--epochs=0', '--vocab=300',
              '--length=16', '--batch_size=16', '--task.model.encoder.width=32'],
  }  # fmt: skip
  with own_logging(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
    for name, given in commands.items():
      assert main(['train', *given, f'--workdir={folder / name}', cache]) == 0
  return folder


def page(command, run, *words, code=0):
  """The page of a command, or its errors."""
  done = command('--mode=explain', f'--workdir={run}', *[f'--config.explain.{w}' for w in words])
  assert done.returncode == code, done.stderr
  found = re.findall(r'step \d+: (.*\.html)$', done.stderr + done.stdout, re.MULTILINE)
  return pathlib.Path(found[0]).read_text() if found else done.stderr


def test_a_table_shows_the_column_that_decides(runs, command):
  made = page(command, runs / 'table', 'count=3')
  order = re.findall(r'<span>(age|city)</span>', made)
  assert order[0] == 'age' and made.count('city = a&lt;b') + made.count('city = c') >= 1
  assert (
    'Shapley of table' in made and '96, in pairs of opposite ones' in made
  )  # of 24 rows in turn, both ways
  assert 'examples of eval.valid' in made
  whole = page(command, runs / 'table', 'method=permutation')
  age, city = (float(re.search(rf'<span>{c}</span><p>.*?</i>(-?[\d.e-]+)', whole).group(1))
               for c in ('age', 'city'))  # fmt: skip
  assert age > 0.2 > abs(city)


def test_the_section_stands_in_the_report_on_demand(runs, command):
  report = runs / 'table' / 'report.html'
  assert 'Saliency of table' not in report.read_text()
  page(command, runs / 'table', 'method=saliency', 'count=1', 'report=true')
  assert 'Saliency of table' in report.read_text()
  assert '<title>table</title>' in report.read_text()


def test_images_have_heat_maps(runs, command):
  made = page(command, runs / 'images', 'method=gradcam', 'count=2', 'target=3')
  assert made.count('data:image/png') == 4 and 'the output of 3' in made
  helpful = page(command, runs / 'images', 'method=influence', 'count=1', 'sample=20')
  assert helpful.count('data:image/png') == 13 and '20 of ' in helpful and '2, 4' in helpful


def test_texts_have_colored_tokens(runs, command):
  made = page(command, runs / 'texts', 'count=2')
  assert len(re.findall(r'<span style="background: #(3b82f6|ea580c)\w\w"', made)) >= 12
  assert 'the embedding 0' in made and 'predicted' in made
  assert 'block_1' in page(command, runs / 'texts', 'method=lens', 'count=1')
  assert 'rollout' in page(command, runs / 'texts', 'method=rollout', 'count=1').lower()
  assert 'Wilson' in page(command, runs / 'texts', 'method=probe')


def test_what_a_model_cannot_give_is_refused(runs, command):
  said = page(command, runs / 'table', 'method=gradcam', code=2)
  assert 'explain.method=gradcam: expected one that MLP on this input can give, shapley' in said
  said = page(command, runs / 'images', 'method=rollout', code=2)
  assert 'CNN' in said and 'gradcam' in said
  assert "did you mean 'saliency'" in page(command, runs / 'images', 'method=salience', code=2)
  assert "target='frog'" in page(command, runs / 'images', 'target=frog', code=2)
  assert 'window=99' in page(command, runs / 'images', 'method=occlusion', 'window=99', code=2)
  assert 'count=0' in page(command, runs / 'images', 'count=0', code=2)
  assert "layer='nose'" in page(command, runs / 'images', 'method=gradcam', 'layer=nose', code=2)
  assert 'saliency does not read it' in page(
    command, runs / 'images', 'method=saliency', 'layer=conv_0', code=2
  )
  one = runs / 'one.csv'
  one.write_text('age,city\n30,c\n')
  done = command('--mode=explain', f'--workdir={runs / "table"}', f'--input={one}')
  assert done.returncode == 2 and 'name a file of others with --background=FILE' in done.stderr
  given = f'--config.explain.background={runs / "t.csv"}'
  done = command('--mode=explain', f'--workdir={runs / "table"}', f'--input={one}', given)
  assert done.returncode == 0, done.stderr
  done = command('--mode=explain', f'--workdir={runs / "table"}', '--output=page.txt')
  assert done.returncode == 2 and 'ends with .html' in done.stderr


def test_the_columns_of_a_click_model_have_bars(runs, command):
  made = page(command, runs / 'clicks', 'count=2')
  assert 'city = a&lt;b' in made or 'city = c' in made or 'city = d' in made
  assert re.search(r'age = \d\d', made) and 'Shapley of criteo' in made
  whole = page(command, runs / 'clicks', 'method=permutation')
  assert 'Fall of the score (-log loss) where a column is permuted' in whole
  said = page(command, runs / 'clicks', 'method=saliency', code=2)
  assert 'DeepFM on this input can give, shapley, occlusion, permutation, probe, influence' in said
  assert 'Wilson' in page(command, runs / 'clicks', 'method=probe')


def test_masks_and_boxes_have_heat_maps(runs, command):
  made = page(command, runs / 'masks', 'method=saliency', 'count=1', 'target=2')
  assert made.count('data:image/png') == 2 and re.search(r'[\d,]+ of 1,024 pixels', made)
  assert 'over the pixels of it, the mean logit of 2' in made
  made = page(command, runs / 'boxes', 'method=occlusion', 'count=1', 'window=16')
  assert made.count('data:image/png') == 2 and re.search(r'box of row \d+, column \d+ ', made)
  assert 'of the best box, the log score of the predicted class' in made
  said = page(command, runs / 'masks', 'method=gradcam', code=2)
  assert 'expected the path of a layer' in said


def test_one_tag_has_colored_tokens(runs, command):
  made = page(command, runs / 'tags', 'method=saliency', 'count=1', 'target=B-LOC')
  assert re.search(r'B-LOC of token \d, &#x27;\w+&#x27; \(0\.\d+\), true', made)
  assert 'of the token that is surest of it, the logit of B-LOC' in made
  assert 'logit of B-LOC' in page(command, runs / 'tags', 'method=rollout', 'target=B-LOC')
  assert "target='B-LOK'" in page(command, runs / 'tags', 'target=B-LOK', code=2)
  said = page(command, runs / 'tags', 'method=lens', code=2)
  assert 'Tagger on this input can give, integrated_gradients' in said


def test_pieces_of_a_text():
  ids = list('aé\n'.encode())
  assert pictures.pieces(Bytes(), ids) == ['a', '', 'é', '\n']
  made = pictures.tokens(['<a>', '', '\n'], np.array([1.0, -0.5, 0.0]))
  assert '#3b82f6c8' in made and '#ea580c64' in made
  assert '&lt;a&gt;' in made and '·' in made and '⏎' in made


def test_slices_of_a_column(runs, command):
  run = runs / 'table'
  given = ('--config.reliability.slices=city,label', '--config.reliability.temperature=true')
  done = command('--mode=eval', f'--workdir={run}', *given)
  assert done.returncode == 0, done.stderr
  (path,) = run.glob('reliability.*.json')
  found = json.loads(path.read_text())
  groups = {g['name']: g for g in found['groups']}
  assert {'valid', 'city=a<b (valid)', 'label=no (valid)', 'label=yes (valid)'} <= set(groups)
  parts = [g for name, g in groups.items() if name.startswith('label=')]
  hits = sum(g['accuracy'] * g['rows'] for g in parts)
  assert hits == pytest.approx(groups['valid']['accuracy'] * groups['valid']['rows'])
  assert all(g['low'] <= g['accuracy'] <= g['high'] for g in groups.values())
  metrics = json.loads(next(run.glob('evaluation.*.json')).read_text())['metrics']
  assert groups['valid']['accuracy'] == pytest.approx(metrics['eval/valid/accuracy'])
  scaled = found['temperature']
  assert scaled['fitted_on'] == 'valid' and scaled['value'] > 0
  both = scaled['entries']['valid']
  assert both['after']['log_loss'] <= both['before']['log_loss'] + 1e-9
  assert 'city=a<b (valid)' in done.stdout
  report = (run / 'report.html').read_text()
  assert 'Reliability by slice' in report and 'city=a&lt;b (valid)' in report


def test_a_temperature_is_never_fitted_on_the_test_set(runs, command):
  images = f'--workdir={runs / "images"}'
  done = command('--mode=eval', images, '--config.reliability.temperature=true')
  assert done.returncode == 2 and 'an entry of `eval` besides test' in done.stderr
  table, fit = f'--workdir={runs / "table"}', '--config.reliability.temperature=true'
  done = command('--mode=eval', table, fit, '--config.reliability.entry=vald')
  assert done.returncode == 2 and "did you mean 'valid'" in done.stderr
  done = command('--mode=eval', table, '--config.reliability.entry=valid')
  assert done.returncode == 2 and 'expected reliability.temperature=True' in done.stderr
  done = command('--mode=eval', table, '--config.reliability.slices=town,label')
  assert done.returncode == 2 and 'reliability.slices=town: expected a column' in done.stderr


def test_the_fitted_temperature_is_applied_on_demand(runs, command):
  """As numpy scales the plain probabilities; it is fitted first, and for this step."""
  table, images = f'--workdir={runs / "table"}', f'--workdir={runs / "images"}'
  wanted, path = '--config.predict.temperature=true', runs / 'table' / 'temperature.json'
  done = command('--mode=predict', images, wanted)
  assert done.returncode == 2 and 'expected a temperature of step 4 in' in done.stderr
  done = command('--mode=eval', table, '--config.reliability.temperature=true')
  assert done.returncode == 0, done.stderr
  kept = json.loads(path.read_text())
  assert kept['80']['fitted_on'] == 'valid'
  path.write_text(json.dumps({'80': {**kept['80'], 'value': 2.5}}))
  found = {}
  for name, words in (('plain', []), ('scaled', [wanted])):
    out = runs / f'{name}.jsonl'
    done = command('--mode=predict', table, f'--output={out}', *words)
    assert done.returncode == 0, done.stderr
    found[name] = [json.loads(line) for line in out.read_text().splitlines()]
  assert 'temperature 2.500 of step 80, fitted on eval.valid' in done.stderr + done.stdout
  for plain, scaled in zip(found['plain'], found['scaled'], strict=True):
    assert plain['prediction'] == scaled['prediction']
    p = np.array(list(plain['probability'].values()))
    expected = p ** (1 / 2.5) / (p ** (1 / 2.5)).sum()
    np.testing.assert_allclose(list(scaled['probability'].values()), expected, rtol=1e-4)
  path.write_text(json.dumps({'79': kept['80']}))
  done = command('--mode=predict', table, wanted)
  assert done.returncode == 2 and 'which has none (but of 79); fit it on an entry' in done.stderr
  path.write_text('{"80": 2}')
  done = command('--mode=predict', table, wanted)
  assert done.returncode == 2 and 'expected value and fitted_on of step 80, not 2' in done.stderr


def test_a_card_says_what_the_run_recorded(runs, command):
  run = runs / 'table'
  done = command('--mode=card', f'--workdir={run}', '--config.export.license=apache-2.0')
  assert done.returncode == 0, done.stderr
  text, page = (run / 'card.md').read_text(), (run / 'card.html').read_text()
  cells = dict(re.findall(r'^\| ([^|]+) \| ([^|]+) \|$', text, re.MULTILINE))
  summary = json.loads((run / 'summary.json').read_text())
  assert text.startswith('---\nlicense: apache-2.0\n') and cells['classes'] == 'no, yes'
  assert cells['SHA-256 of the final state'] == summary['state_digest']
  assert cells['license'] == cells['intended use'] == 'not recorded'
  assert cells['metrics that selected the checkpoint'] == 'eval/valid/loss'
  accuracy = summary['metrics']['eval/valid/accuracy']
  low, high = wilson(round(accuracy * 24), 24)
  assert f'| accuracy | {accuracy:.4f} | {low:.4f} to {high:.4f} | Wilson |' in text
  assert 'Trained without differential privacy' in text and '## Energy\n\nnot recorded' in text
  assert 'not recorded' in page and 'http' not in page.replace('http-equiv', '')


def test_a_card_without_data_and_with_privacy(runs, command, tmp_path):
  """Results are those that training logged; words of privacy are shown, but for its secret."""
  run = tmp_path / 'run'
  shutil.copytree(runs / 'table', run)
  stored = json.loads((run / 'config.json').read_text())
  stored['config']['data']['path'] = stored['config']['eval']['valid']['path'] = 'gone.csv'
  (run / 'config.json').write_text(json.dumps(stored))
  done = command('--mode=card', f'--workdir={run}')
  assert done.returncode == 0, done.stderr
  text = (run / 'card.md').read_text()
  assert 'Not measured anew' in text and 'gone.csv' in text and text.startswith('---\nlibrary')
  words = {'call': 'bmx.privacy:Privacy', 'epsilon': 3.0, 'secret': 'env:KEY', 'clip': 1.0}
  facts = Facts({'config': stored['config'] | {'privacy': words}}, None,
                {'metrics': {'epsilon': 2.5}}, [], {}, {})  # fmt: skip
  made = markdown('x', {}, card(facts, recorded({}, 'none'), ''))
  assert '| ε spent | 2.5 |' in made and '| how examples were sampled | Poisson, ' in made
  assert 'env:KEY' not in made and '| privacy.clip | 1.0 |' in made


def test_cells_of_a_card_stay_in_their_table():
  made = markdown('t', {}, [Part('p', 'text', ('a', 'b'), [('x|y', '<b>\nnew')])])
  assert made.splitlines()[-1] == '| x\\|y | &lt;b> new |'
  assert '<b>' not in page_of('t', [Part('<b>', '<b>', ('a',), [('<b>',)])])
