"""Labels that no device refuses are refused on the host, with the number of the example."""

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import ChecksRows
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.tasks.classification import Classification
from bmx.tasks.common import Wrapper
from bmx.tasks.language import CausalLM
from bmx.tasks.question_answering import QuestionAnswering

NUMBERS = np.array([30, 31, 32])
CONTEXT = np.array([[0, 0, 1, 1, 0]] * 3)
IDS, ONES = np.zeros((3, 5), np.int32), np.ones((3, 5), np.float32)
GPT_TASK = CausalLM(GPT(vocab_size=11, max_seq_len=5, width=8, depth=1, heads=1))


def at(row, column, value):
  ids = IDS.copy()
  ids[row, column] = value
  return ids


BAD = {
  'label=3': (Classification(MLP(3)), {'label': np.array([0, 2, 3])}, 32),
  'label=-1': (Wrapper(Classification(MLP(3))), {'label': np.array([0, -1, 2])}, 31),
  'tokens=11': (GPT_TASK, {'tokens': at(1, 4, 11), 'targets': IDS}, 31),
  'targets=-100': (GPT_TASK, {'tokens': IDS, 'targets': at(2, 0, -100), 'weights': ONES}, 32),
  'first=1': (
    QuestionAnswering(MLP(2)),
    {'context': CONTEXT, 'first': np.array([0, 1, 2]), 'last': np.array([0, 2, 2])},
    31,
  ),
  'last=4': (
    QuestionAnswering(MLP(2)),
    {'context': CONTEXT, 'first': np.array([0, 2, 2]), 'last': np.array([0, 2, 4])},
    32,
  ),
}


@pytest.mark.parametrize('given', BAD)
def test_labels_out_of_range(given):
  task, rows, number = BAD[given]
  assert isinstance(task, ChecksRows)
  with pytest.raises(InputError, match=f'^{given} of example {number}: expected'):
    task.check_rows(rows, NUMBERS)


def test_labels_without_weight_are_not_read():
  hidden = {'tokens': IDS, 'targets': at(2, 0, -100), 'weights': 1.0 - (at(2, 0, 1) == 1)}
  GPT_TASK.check_rows(hidden, NUMBERS)


def test_every_row_passes_the_check():
  """Held on the device or fed from the host."""
  rows = {'x': np.ones((3, 2), np.float32), 'label': np.array([0, 1, 5], np.int32)}
  data = Batches(ArrayData(rows, {}), 1, train=False, check=Classification(MLP(3)).check_rows)
  data.rows(np.array([1]), np.array([1]))
  for read in (data.resident, lambda: data.rows(np.array([2]), np.array([2]))):
    with pytest.raises(InputError, match='label=5 of example 2'):
      read()
