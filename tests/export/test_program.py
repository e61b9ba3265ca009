"""Exported programs of any batch and length against the task's own outputs at each size."""

import jax
import jax.export
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.export import check, program
from bmx.models.bert import BERT, Pretraining, Tagger
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.parallel import Layout, jit, make_mesh, unbox, use
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.encoder import MaskedLM
from bmx.tasks.language import CausalLM
from bmx.tasks.question_answering import QuestionAnswering
from tests.models.weights import KEY, drawn

V, T = 40, 16
ROW = Spec((T,), np.dtype(np.int32), ('length',))
LABEL = Spec((), np.dtype(np.int32))
IMAGE = {'image': Spec((9, 8, 1), np.dtype(np.float32)), 'label': LABEL}
TABLE = {'x': Spec((5,), np.dtype(np.float32)), 'label': LABEL}
TEXT = {'tokens': ROW, 'targets': ROW}
PAIR = {'tokens': ROW, 'segment_ids': ROW, 'types': ROW, 'label': LABEL}
QUESTION = PAIR | {'context': Spec((T,), np.dtype(np.int32)), 'first': LABEL, 'last': LABEL}


def gpt(**options):
  sizes = {'vocab_size': V, 'max_seq_len': T, 'width': 16, 'depth': 2, 'heads': 4}
  return CausalLM(GPT(**sizes | options))


def bert():
  return BERT(vocab_size=V, max_seq_len=T, width=16, depth=1, heads=2)


LLAMA = {'positions': 'rotary', 'kv_heads': 2, 'norm': 'rms', 'gated': True, 'tied': False,
         'window': 3, 'vocab_pad': 8, 'scan': True}  # fmt: skip
# Name -> the task, the arrays of its examples, the inputs and outputs of its program.
CASES = {
  'mlp': (Classification(MLP(3, norm='layer')), TABLE, 'x', 'logits prediction probability'),
  'binary': (BinaryClassification(MLP(1)), TABLE, 'x', 'logits prediction score'),
  'cnn': (Classification(CNN(3, (4, 4), norm='batch')), IMAGE, 'image',
          'logits prediction probability'),
  'llama': (gpt(**LLAMA), TEXT, 'tokens', 'logits'),
  'packed': (gpt(), TEXT | {'positions': ROW, 'segment_ids': ROW},
             'positions segment_ids tokens', 'logits'),
  'answers': (QuestionAnswering(Tagger(bert(), 2)), QUESTION, 'context segment_ids tokens types',
              'logits no_answer prediction score'),
  'masked': (MaskedLM(Pretraining(bert(), True)), PAIR, 'segment_ids tokens types',
             'logits logits_1 prediction'),
}  # fmt: skip


@pytest.fixture(scope='module')
def layout():
  axes = ('pipe', 'data', 'fsdp', 'expert', 'seq', 'model')
  return Layout(make_mesh(dict.fromkeys(axes, 1), jax.devices()[:1]))


def new_variables(task, spec, layout):
  batch = {k: np.zeros((1, *v.shape), v.dtype) for k, v in spec.items()}
  batch['weights'] = np.ones(1, np.float32)
  with use(layout):
    shapes = jax.eval_shape(lambda key: unbox(task.init(Noise(key, 0), batch)), KEY)
  return drawn(shapes)


def host(arrays):
  return {k: np.asarray(v) for k, v in arrays.items()}


@pytest.mark.parametrize('name', CASES)
def test_a_program_computes_what_its_task_does(name, layout):
  task, spec, inputs, outputs = CASES[name]
  variables = new_variables(task, spec, layout)
  read = program.inputs_of(task, variables, spec, layout)
  made, signature = program.export(task, variables, read, layout)
  assert ' '.join(sorted(signature.inputs)) == inputs
  assert ' '.join(sorted(signature.outputs)) == outputs
  assert signature.inputs[inputs.split()[-1]]['shape'][0] == 'b'
  loaded = jax.export.deserialize(bytearray(made))
  assert loaded.platforms == ('cpu', 'cuda', 'tpu')
  _, batch = check.generated(signature.inputs, signature.most, V)
  assert all(x.shape[:2] in ((2, T // 2), (2, 5), (2, 9)) for x in batch.values())
  given = host(loaded.call(tree.named(variables), batch))
  own = jit(lambda v, batch: program.outputs_of(task, v, batch), layout)
  assert check.largest_error([given], [host(own(variables, batch))]) < 1e-6


def test_experts_need_a_fixed_length(layout):
  task = gpt(experts=4)
  variables = new_variables(task, TEXT, layout)
  read = program.inputs_of(task, variables, TEXT, layout)
  with pytest.raises(InputError, match=r'GPT: expected a model .* --export.length=N'):
    program.export(task, variables, read, layout)
  made, signature = program.export(task, variables, read, layout, length=8)
  assert signature.inputs == {'tokens': {'shape': ['b', 8], 'dtype': 'int32'}}
  tokens = {'tokens': np.arange(16, dtype=np.int32).reshape(2, 8)}
  given = jax.export.deserialize(bytearray(made)).call(tree.named(variables), tokens)
  own = jit(lambda v, batch: program.outputs_of(task, v, batch), layout)(variables, tokens)
  assert check.largest_error([host(given)], [host(own)]) < 1e-6


def test_a_length_beyond_the_positions_is_refused(layout):
  task = gpt()
  with pytest.raises(InputError, match=r'export.length=17: expected at most 16, the positions'):
    program.abstract_inputs(task, {'tokens': ROW}, 17)


def test_differences_are_found():
  """Errors are relative to the largest number; integers and masked scores are equal or not."""
  near = {'logits': np.float32([4.0, -1e30]), 'prediction': np.int32([1])}
  off = near | {'logits': np.float32([4.0004, -1e30])}
  assert check.largest_error([near], [near]) == 0
  assert check.largest_error([off], [near]) == pytest.approx(1e-4, rel=1e-2)
  for other in ({'prediction': np.int32([2])}, {'logits': np.float32([4, 0])},
                {'logits': np.float32([np.nan, -1e30])}, {'more': np.zeros(1)}):  # fmt: skip
    assert check.largest_error([near | other], [near]) == 1
