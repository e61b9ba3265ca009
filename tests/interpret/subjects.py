"""Small models with examples, whose attributions tests compare."""

import jax
import jax.numpy as jnp
import numpy as np

from bmx.interpret.subject import Subject
from bmx.models.bert import BERT, Classifier
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.tasks.classification import Classification
from bmx.tasks.encoder import TextClassification
from bmx.tasks.language import CausalLM
from tests.models.weights import drawn, shapes

B, T, V = 2, 8, 12
TARGET = jnp.array([2, 0])


def rows(*shape):
  return np.random.default_rng(0).normal(size=(B, *shape)).astype(np.float32)


def tokens():
  ids = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)
  segments = np.ones((B, T), np.int32)
  segments[1, 5:] = 0
  return {'tokens': ids, 'segment_ids': segments}


def bert(scan=False, **options):
  encoder = BERT(V, T, width=16, depth=2, heads=4, dropout=0.0, scan=scan, **options)
  return TextClassification(Classifier(encoder, 3))


def gpt(scan=False, **options):
  return CausalLM(GPT(V, T, width=16, depth=2, heads=4, scan=scan, **options))


TASKS = {
  'mlp': (lambda: Classification(MLP(3, (8,))), lambda: {'x': rows(6)}),
  'cnn': (
    lambda: Classification(CNN(3, (4, 5), kernel_size=3, widths=(8,))),
    lambda: {'image': rows(8, 8, 2)},
  ),
  'bert': (bert, tokens),
  'gpt': (gpt, tokens),
}


def weighted(batch):
  return batch | {'weights': np.ones(B, np.float32)}


def subject(kind, seed=0, scale=0.4, **options):
  make, data = TASKS[kind]
  task, batch = make(**options), weighted(data())
  abstract = shapes(task.model, *task.inputs(batch))
  return Subject(task, drawn(abstract, seed, scale), batch, TARGET)


def run(fn, *args):
  """One compiled call, as outside of tests."""
  return jax.tree.map(np.asarray, jax.jit(fn)(*args))
