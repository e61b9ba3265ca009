"""Runs that are used where their training data, or the texts of their tokenizer, are gone."""

import json
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.data.text.tokenizer import Subwords, frame, load
from bmx.experiment.data import check_tokenizers
from bmx.modes import Request, evaluate, generate, predict, start
from bmx.train import datafile
from tests.conftest import ROOT
from tests.data.text.kinds import write

LENGTH = 16


def recipe(**words):
  """gpt_char:tiny with other words of its config, its data and its evaluations."""
  config, name = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), ('mesh.data=1', 'steps=4'))
  with config.unlocked():
    config.task.model.vocab_size = 320
    for word, value in words.items():
      config[word] = value
  return config, name


def build(config, name, **options):
  return experiment.build(config, name, jax.devices()[:1], **options)


def text(path, words='Ab ab. '):
  path.write_text(f'{words}\n\n' * 200)
  return {'call': 'bmx.data.text.packing:packed', 'paths': (str(path),), 'length': LENGTH}


def learned(path):
  return {'call': 'bmx.data.text.tokenizer_train:trained', 'kind': 'bpe', 'vocab_size': 300,
          'paths': (str(path),)}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def test_parts_inside_a_part_use_the_tokenizer_of_the_run(tmp_path, cache):
  """Its texts change after the run began, so that building it again would cut other tokens."""
  source, other = tmp_path / 'a.txt', tmp_path / 'b.txt'
  coder = {'tokenizer': learned(source)}
  mix = {
    'call': 'bmx.data.mixture:mix', 'weights': {'one': 1.0, 'two': 1.0},
    'sources': {'one': text(source) | coder, 'two': text(other, 'another text, ab. ') | coder},
  }  # fmt: skip
  config, name = recipe(data=mix, eval={'mixed': mix, 'plain': text(other) | coder})
  x = build(config, name)
  datafile.write(tmp_path, x.data)
  source.write_text('Something else: quite so.\n\n' * 400)
  (tmp_path / 'tokenizer.json').unlink()  # data.json holds it too
  again = build(config, name, stored=datafile.read(tmp_path))
  own = datafile.tokenizer_of(x.data)
  assert own
  for entry in again.evals.values():
    assert datafile.tokenizer_of(entry.data) == own
  with pytest.raises(InputError, match='tokenizer.json differs from the tokenizer'):
    (tmp_path / 'tokenizer.json').write_text('{}')
    datafile.check_tokenizer(tmp_path, datafile.tokenizer_of(again.data))


OWN = """
from bmx.data.arrays import arrays
from bmx.data.text.packing import packed
from bmx.data.text.tokenizer_train import trained

def theirs(path, kinds, train=True, seed=0):
  return packed(16, (path,), tokenizer=trained('bpe', 300, (kinds,)))
"""


def test_an_input_that_another_tokenizer_cuts_is_refused(tmp_path, cache, monkeypatch):
  (tmp_path / 'own_reader.py').write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  source = tmp_path / 'a.txt'
  path = text(source)['paths'][0]
  config, name = recipe(data={'call': 'own_reader:theirs', 'path': path, 'kinds': path}, eval={})
  x = build(config, name)
  datafile.write(tmp_path, x.data)
  stored = datafile.read(tmp_path)
  again = build(config, name, stored=stored)
  assert experiment.input_data(again, path, stored).size == x.data.size
  source.write_text('Something else: quite so.\n\n' * 400)
  with pytest.raises(InputError, match=r'--input=.*: expected text that the tokenizer of the run'):
    experiment.input_data(again, path, stored)


def test_bytes_are_not_evaluated_with_a_tokenizer(tmp_path):
  """Nor with one that has 256 ids, as bytes have; ids of a file are compared by their number."""
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({f'w{i}' if i else 'Ab': i for i in range(255)}, 'w1')
  )
  inner.add_special_tokens(['<|endoftext|>'])
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # type: ignore
  inner.save(str(tmp_path / 'tokenizer.json'))
  plain = text(tmp_path / 'a.txt')
  words = plain | {'tokenizer': {'call': 'bmx.data.text.tokenizer:load', 'path': str(tmp_path)}}
  for data, entry in ((plain, words), (words, plain)):
    with pytest.raises(InputError, match='eval.other: expected the tokenizer of the training data'):
      build(*recipe(data=data, eval={'other': entry}))
  x = build(*recipe(data=plain, eval={'other': plain}))
  check_tokenizers(x.data, x.evals)


def labelled(path, label):
  lines = [{'text': f'a {n % 7} {n}'} | label(n) for n in range(20)]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return {'call': 'bmx.data.text.text_classification:text_classification', 'path': str(path),
          'text': 'text', 'label': 'kind', 'length': LENGTH}  # fmt: skip


def test_labels_that_an_evaluation_lacks_are_found_by_build(tmp_path, cache):
  text(tmp_path / 'a.txt')
  coder = {**learned(tmp_path / 'a.txt'), 'kind': 'wordpiece'}
  known = labelled(tmp_path / 'train.jsonl', lambda n: {'kind': 'ab'[n % 2]})
  hidden = labelled(tmp_path / 'test.jsonl', lambda n: {'kind': -1})
  encoder = {'call': 'bmx.models.bert:BERT', 'vocab_size': 320, 'max_seq_len': LENGTH,
             'width': 8, 'depth': 1, 'heads': 2}  # fmt: skip
  task = {
    'call': 'bmx.tasks.encoder:TextClassification',
    'model': {'call': 'bmx.models.bert:Classifier', 'encoder': encoder, 'num_outputs': 2},
  }
  config, name = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), ('mesh.data=1', 'steps=4'))
  with config.unlocked():
    config.task, config.data = task, known | {'tokenizer': coder}
    config.eval = {'hidden': hidden | {'tokenizer': coder}}
  with pytest.raises(InputError, match=r'eval\.hidden: expected examples with label; .*test'):
    build(config, name)
  assert 'label' not in build(config, name, labels=False).evals['hidden'].data.spec


READER = """
from bmx.data.text.windows import text

def theirs(path, train=True, seed=0):
  return text(16, path, 'all', seed=seed, train=train)
"""


def test_generation_needs_no_training_file(tmp_path, monkeypatch, capsys):
  """Of data whose factory has no parameter `read`: data.json holds their shapes."""
  (tmp_path / 'readers.py').write_text(READER)
  monkeypatch.syspath_prepend(tmp_path)
  text(tmp_path / 'a.txt')
  data = {'call': 'readers:theirs', 'path': str(tmp_path / 'a.txt')}
  config, name = recipe(data=data, eval={})
  config.task.model.vocab_size, config.generate.max_new_tokens = 256, 3
  (tmp_path / 'run/checkpoints').mkdir(parents=True)
  datafile.write(tmp_path / 'run', build(config, name).data)
  (tmp_path / 'a.txt').unlink()
  config.mesh.data = jax.device_count()
  request = Request(config, name, str(tmp_path / 'run'), prompts=('Ab ',))
  weights = lambda opened: {'params': opened.experiment.init().params}
  monkeypatch.setattr(generate, 'load_weights', weights)
  monkeypatch.setattr(start, 'start', lambda request: tmp_path / 'run')
  assert generate.run(request) == 0
  assert capsys.readouterr().out.startswith('Ab ')


def test_all_processes_predict_and_evaluate_and_the_first_writes(tmp_path, monkeypatch):
  consumed = []
  lines = lambda: (consumed.append(n) or {'prediction': n} for n in range(3))
  metrics = {'valid': lambda state: consumed.append('valid') or {'eval/valid/loss': 1.0}}
  x = types.SimpleNamespace(evals=metrics)
  monkeypatch.setattr(predict, 'open_run', lambda *_, **__: (x, tmp_path, None))
  monkeypatch.setattr(predict, '_predicted', lambda *_: (lines(), 4))
  monkeypatch.setattr(evaluate, 'restored', lambda *_: (None, 4))
  monkeypatch.setattr(evaluate, 'evaluations', lambda x: metrics)
  for process in (1, 0):
    monkeypatch.setattr(jax, 'process_index', lambda number=process: number)
    predict.run(Request(None, 'run', str(tmp_path)))
    evaluate.evaluate(x, tmp_path)
    assert consumed == [0, 1, 2, 'valid']
    consumed.clear()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == (set() if process else {'predictions', 'evaluation.4.json'})
  assert len((tmp_path / 'predictions/valid.4.jsonl').read_text().splitlines()) == 3


@pytest.mark.parametrize('own', [False, True])
def test_generation_needs_no_weights_that_the_run_began_with(tmp_path, cache, own):
  """The run keeps their ends of text, and their tokenizer where its data have none."""
  folder = write('DeepSeek', tmp_path / 'weights')
  (folder / 'config.json').write_text('{"eos_token_id": 5}')
  (folder / 'generation_config.json').write_text('{"eos_token_id": [1, 7]}')
  ids = np.arange(200, dtype=np.uint16) % 250
  ids.tofile(tmp_path / 'ids.bin')
  data = {'call': 'bmx.data.text.windows:tokens', 'path': str(tmp_path / 'ids.bin'),
          'vocab_size': 300, 'length': LENGTH, 'split': 'all'}  # fmt: skip
  if own:
    coder = {'call': 'bmx.data.text.tokenizer:load', 'path': str(folder)}
    data = text(tmp_path / 'a.txt') | {'tokenizer': coder}
  config, name = recipe(data=data, eval={'valid': data} if own else {})
  x = build(config, name)
  run = tmp_path / 'run'
  run.mkdir()
  datafile.write(run, x.data, str(folder))
  shutil.rmtree(folder)
  datafile.write(run, x.data, str(folder))  # a resumed run, which cannot read them again
  stored = datafile.read(run)
  assert stored is not None and stored.ends == (1, 7, 5)
  begun = types.SimpleNamespace(weights=str(folder))
  coder = load(str(run))
  assert (frame(coder).prefix, frame(coder).suffix, coder.ends) == ((0,), (1,), (1,))
  assert generate.ends_of(begun, run, coder) == (1, 7, 5)
  assert datafile.ends_of(str(run)) == (1, 7, 5)  # of a run that begins with this one
  if own:
    known = Subwords(stored.state['tokenizer'], names=stored.state['special_tokens'])
    assert (known.ends, frame(known)) == (coder.ends, frame(coder))
    entry: Any = build(config, name, stored=stored).evals['valid'].data.examples
    assert (entry.prefix, entry.suffix) == ((0,), (1,))
