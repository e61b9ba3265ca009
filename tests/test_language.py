"""A language model from text to text.

Tokenizer, pre-training, three ways to fine-tune, predictions, export and import, generation.
"""

import json
import math
import re

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.train import loop
from tests.conftest import ROOT

FILMS = [f'{mood} film number {i}' for i in range(40) for mood in ('good', 'bad')]
SMALL = ('mesh.data=1', 'every.log=10', 'every.save=20', 'every.eval=20')


def run(recipe, path, *overrides):
  config, name = recipes.load(str(ROOT / f'configs/{recipe}'), [*SMALL, *overrides])
  return loop.run(experiment.build(config, name, jax.devices()[:1]), path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Texts of every kind, and an encoder that has read them."""
  path = tmp_path_factory.mktemp('language')
  (path / 'corpus.txt').write_text('\n'.join(FILMS * 3))
  rows = [f'{text},{int(text.startswith("good"))}' for text in FILMS]
  for name in ('train', 'valid'):
    (path / f'{name}.csv').write_text('sentence,label\n' + '\n'.join(rows) + '\n')
  tagged = ['\n'.join(f'{w}\t{"B-mood" if w in ("good", "bad") else "O"}' for w in text.split())
            for text in FILMS]  # fmt: skip
  (path / 'words.conll').write_text('\n\n'.join(tagged) + '\n')
  (path / 'squad.json').write_text(json.dumps({'data': [article(i) for i in range(10)]}))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(path / 'cache'))
    sizes = ('vocab=320', 'length=16', 'steps=60', 'data.unit=line')
    paths = f'paths=("{path}/corpus.txt",)'
    run('bert_small.py:tiny', path / 'bert', paths, *sizes)
    yield path


def article(n):
  context = f'the {n} films were good. nobody saw {n + 5} others.'
  answer = {'text': str(n + 5), 'answer_start': context.index(str(n + 5), 20)}
  question = {'id': str(n), 'question': 'how many did nobody see?', 'answers': [answer]}
  return {'title': str(n), 'paragraphs': [{'context': context, 'qas': [question]}]}


def start(folder):
  return f'init.path={folder / "bert"}', 'epochs=0.0', 'steps=60', 'schedule.warmup=2'


def told_lines(run):
  (path,) = (run / 'predictions').glob('*.jsonl')
  return path.read_text().splitlines()


def test_classes(folder):
  data = (f'data.path={folder}/train.csv', 'length=16')
  held = f'eval.valid.path={folder}/valid.csv'
  summary = run('bert_finetune.py', folder / 'sst2', *start(folder), *data, held,
                'schedule.peak=2e-3')  # fmt: skip
  assert summary['metrics']['eval/valid/accuracy'] == 1
  assert summary['metrics']['eval/valid/matthews'] == 1


def test_numbers(folder):
  table = f'{folder}/numbers.csv'
  rows = [f'{text},{1.5 if text.startswith("good") else -0.5}' for text in FILMS]
  (folder / 'numbers.csv').write_text('sentence,label\n' + '\n'.join(rows) + '\n')
  data = (f'data.path={table}', f'eval.valid.path={table}', 'length=16')
  summary = run('bert_finetune.py:regression', folder / 'numbers', *start(folder), *data,
                'schedule.peak=2e-3')  # fmt: skip
  assert summary['metrics']['eval/valid/pearson'] > 0.95
  assert summary['metrics']['eval/valid/loss'] < 0.1


def test_tags(folder):
  data = (f'data.path={folder}/words.conll', 'length=16')
  held = [f'eval.{name}.path={folder}/words.conll' for name in ('valid', 'test')]
  held += [f'eval.{name}.length=16' for name in ('valid', 'test')]
  summary = run('bert_finetune.py:ner', folder / 'ner', *start(folder), *data, *held,
                'task.model.num_outputs=2', 'schedule.peak=2e-3')  # fmt: skip
  assert summary['metrics']['eval/test/entity_f1'] == 1


def test_answers(command, folder):
  data = (f'data.path={folder}/squad.json', 'length=16', 'batch_size=4')
  summary = run('bert_finetune.py:qa', folder / 'qa', *start(folder), *data, 'schedule.peak=2e-3')
  metrics = summary['metrics']
  assert 0 <= metrics['eval/valid/exact_match'] <= metrics['eval/valid/answer_f1'] <= 1
  assert metrics['eval/valid/answer_f1'] > 0
  done = command('--workdir', folder / 'qa', '--mode=predict')
  assert done.returncode == 0, done.stderr
  lines = told_lines(folder / 'qa')
  told = [json.loads(line) for line in lines]
  assert len(told) == 2 and all(t['known'][0].isdigit() and t['answer'] for t in told)


def test_predictions_are_json_lines(command, folder):
  """Of a file that has no classes."""
  if not (folder / 'sst2').is_dir():
    test_classes(folder)
  (folder / 'new.csv').write_text('sentence\nbad film number 3\ngood film number 99\n')
  done = command('--workdir', folder / 'sst2', '--mode=predict', '--input', folder / 'new.csv')
  assert done.returncode == 0, done.stderr
  told = [json.loads(line) for line in told_lines(folder / 'sst2')]
  assert [line['prediction'] for line in told] == ['0', '1']
  assert told[1]['sentence'] == 'good film number 99' and set(told[1]['probability']) == {'0', '1'}


def test_perplexity_and_bits_per_byte(tmp_path):
  words = [*SMALL, 'steps=4', f'data.path={ROOT}/LICENSE']
  config, name = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), words)
  functions = ('bmx.tasks.language:perplexity', 'bmx.tasks.language:bits_per_byte')
  config.eval.valid.metrics = functions
  summary = loop.run(experiment.build(config, name, jax.devices()[:1]), tmp_path / 'run')
  nats = summary['metrics']['eval/valid/loss']
  assert summary['metrics']['eval/valid/perplexity'] == pytest.approx(math.exp(nats), rel=1e-4)
  size = (ROOT / 'LICENSE').stat().st_size
  held = size - size * 9 // 10  # bytes of the last tenth, all but the first of which are predicted
  assert summary['metrics']['eval/valid/bits_per_byte'] == pytest.approx(
    nats / math.log(2) * (held - 1) / held, rel=1e-5
  )


def test_out_to_another_format_and_in_again(folder, tmp_path):
  from bmx.adapt import hub, restore

  bert = folder / 'bert'
  model = restore.model(str(bert))
  x = finetune(folder, str(bert))
  encoder = x.init().params['encoder']
  text = (bert / 'tokenizer.json').read_text()
  hub.save(str(tmp_path / 'hub'), model.encoder, encoder, tokenizer=text)
  again = finetune(folder, str(tmp_path / 'hub')).init().params['encoder']
  assert tree.digest(again) == tree.digest(encoder)


def finetune(folder, path):
  data = (f'data.path={folder}/train.csv', 'length=16')
  overrides = [*SMALL, f'init.path={path}', *data, f'eval.valid.path={folder}/valid.csv']
  overrides += ['schedule.warmup=1']
  config, name = recipes.load(str(ROOT / 'configs/bert_finetune.py'), overrides)
  return experiment.build(config, name, jax.devices()[:1])


BAD = {
  'vocabulary': ('vocab=50', 'vocab_size=50: expected at least'),
  'mask': ('vocab=512', 'task.mask=103, task.special=.*: expected 4 and'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_tokenizer_that_does_not_fit(folder, name):
  """The recipe is for the ids of bert-base-uncased."""
  override, said = BAD[name]
  (folder / 'pairs.txt').write_text('\n\n'.join(f'{a}. {a} again.' for a in FILMS))
  paths = (f'paths=("{folder}/pairs.txt",)', f'tokenizer={folder}/bert', 'dtype=float32')
  overrides = [*SMALL, *paths, 'length=16', override]
  config, _ = recipes.load(str(ROOT / 'configs/bert_base.py'), overrides)
  with pytest.raises(InputError, match=said):
    experiment.build(config, name, jax.devices()[:1])


def test_a_run_keeps_its_tokenizer(folder, tmp_path):
  """Another text would give other ids to the same words."""
  (tmp_path / 'corpus.txt').write_text('\n'.join(FILMS))
  command = ('vocab=320', 'length=16', 'steps=4', 'schedule.warmup=1', 'data.unit=line',
             f'paths=("{tmp_path}/corpus.txt",)')  # fmt: skip
  run('bert_small.py:tiny', tmp_path / 'run', *command)
  (tmp_path / 'corpus.txt').write_text('\n'.join(f'{text} strange' for text in FILMS))
  with pytest.raises(InputError, match=r'tokenizer\.json differs from the tokenizer'):
    run('bert_small.py:tiny', tmp_path / 'run', *command, 'steps=6')


def test_the_python_of_the_page(tmp_path, monkeypatch):
  """From a run to Hugging Face's format, and to a text."""
  monkeypatch.chdir(tmp_path)
  run('gpt_char.py:tiny', tmp_path / 'runs/first', 'steps=4', 'schedule.warmup=1',
      'task.model.bias=True', f'data.path={ROOT}/LICENSE')  # fmt: skip
  page = (ROOT / 'docs/language.md').read_text()
  code = [b for b in re.findall(r'```python\n(.*?)```', page, re.DOTALL) if 'import' in b]
  assert len(code) == 2
  scope: dict = {}
  exec(compile('\n'.join(code), 'language.md', 'exec'), scope)
  assert len(scope['texts']) == 2 and (tmp_path / 'DIR/model.safetensors').is_file()
