"""Classes of a head that is read with its weights stand in its order."""

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.adapt.classes import check_order
from bmx.core.errors import InputError
from bmx.models.bert import BERT, Classifier, Tagger
from bmx.train import datafile
from tests.adapt.test_meta import saved, word_piece
from tests.conftest import ROOT

NAMES = ('positive', 'negative', 'mixed')  # not sorted, as in a published model
ENCODER = BERT(100, 16, width=8, depth=1, heads=2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A Hugging Face directory of a classifier."""
  path = tmp_path_factory.mktemp('hub') / 'classifier'
  tokenizer = word_piece(True).to_str()
  saved(path, Classifier(ENCODER, 3), labels=NAMES, tokenizer=tokenizer)
  return path


def build(folder, tmp_path, *overrides, names=NAMES):
  path = tmp_path / 'a.csv'
  rows = [f'hello {n},{name.upper() if n % 2 else name}' for n, name in enumerate(names)]
  path.write_text('\n'.join(['sentence,label', *rows, *rows]) + '\n')
  config, name = recipes.load(str(ROOT / 'configs/bert_finetune.py'), [
    f'init.path={folder}', f'data.path={path}', f'eval.valid.path={path}', 'length=8',
    'batch_size=2', 'task.model.num_outputs=3', 'mesh.data=1', 'eval.valid.batch_size=2',
    'schedule.warmup=1', *overrides,
  ])  # fmt: skip
  return experiment.build(config, name, jax.devices()[:1])


def test_the_order_of_the_folder_counts(folder, tmp_path):
  """The classes of the data are sorted; upper case is the same name."""
  made = build(folder, tmp_path, 'init.reinit=pooler')
  assert made.data.metadata['class_names'] == ('NEGATIVE', 'mixed', 'positive')
  said = r"'positive', 'negative', 'mixed'.*data are \('NEGATIVE', 'mixed', 'positive'\).*"
  order = '("positive", "NEGATIVE", "mixed")'
  fix = r"--config\.data\.classes=\"\('positive', 'NEGATIVE', 'mixed'\)\""
  with pytest.raises(InputError, match=said + fix):
    made.init()
  made = build(folder, tmp_path, 'init.reinit=pooler', f'data.classes={order}')
  rows = made.data.rows(np.arange(3), np.arange(3))
  assert rows['label'].tolist() == [0, 1, 2]
  made.init()


@pytest.mark.parametrize(('overrides', 'names'), [
  (['init.reinit=head|pooler'], NAMES),  # the head starts anew
  (['init.reinit=pooler'], ('good', 'bad', 'ugly')),  # other names say nothing about the order
])  # fmt: skip
def test_classes_that_are_not_compared(folder, tmp_path, overrides, names):
  build(folder, tmp_path, *overrides, names=names).init()


def test_classes_of_a_run(folder, tmp_path):
  made = build(folder, tmp_path, 'init.reinit=.')
  datafile.write(tmp_path, made.data)
  names = made.data.metadata['class_names']
  check_order(str(tmp_path), True, ['head/kernel'], names)
  with pytest.raises(InputError, match='expected one order'):
    check_order(str(tmp_path), True, ['head/kernel'], names[::-1])


def test_tags_of_a_folder(tmp_path):
  tags = ('O', 'B-MISC', 'I-MISC', 'B-LOC', 'I-LOC')
  saved(tmp_path / 'tagger', Tagger(ENCODER, 5), labels=tags)
  taken = ['encoder/embed/table', 'head/kernel']
  check_order(str(tmp_path / 'tagger'), False, taken, tags)
  check_order(str(tmp_path / 'tagger'), False, taken, ())
  with pytest.raises(InputError, match="set --config.data.classes=.*'O', 'B-MISC', 'I-MISC'"):
    check_order(str(tmp_path / 'tagger'), False, taken, sorted(tags))
  check_order(str(tmp_path / 'tagger'), False, taken[:1], sorted(tags))
