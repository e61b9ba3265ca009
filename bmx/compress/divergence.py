"""Divergences between a student and a teacher: of predictions, hidden states and relations."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.metrics import weighted
from bmx.core.types import Array, Batch, facts_of
from bmx.ops.losses import squared_error
from bmx.ops.masks import MASK_VALUE
from bmx.parallel import constrain, gather
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.encoder import MaskedLM, TokenClassification
from bmx.tasks.language import CausalLM
from bmx.tasks.question_answering import QuestionAnswering
from bmx.tasks.regression import Regression


def kl(teacher: Array, student: Array, temperature: float = 1.0) -> Array:
  """Computes T² · KL(softmax(teacher / T) ‖ softmax(student / T)): [..., V] -> float32 [...].

  The factor T² keeps the size of the gradient (Hinton et al. 2015, section 2.1).
  """
  log_p, log_q = (
    jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (teacher, student)
  )
  return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def top_kl(ids: Array, log_probs: Array, logits: Array, temperature: float = 1.0) -> Array:
  """Computes T² · KL from the largest probabilities of a teacher; all others are one class.

  Args:
    ids: int [..., k], the classes that the teacher finds most likely.
    log_probs: [..., k], their log-probabilities at temperature T.
    logits: of the student, [..., V].
    temperature: T.
  """
  log_q = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
  picked = jnp.take_along_axis(log_q, ids, -1)
  p = jnp.exp(log_probs)
  rest, own = 1 - p.sum(-1), 1 - jnp.exp(picked).sum(-1)
  some = rest > EPSILON  # smaller is rounding
  others = jnp.log(jnp.where(some, rest, 1.0)) - jnp.log(jnp.maximum(own, EPSILON))
  total = (p * (log_probs - picked)).sum(-1) + jnp.where(some, rest * others, 0.0)
  return temperature**2 * total


EPSILON = 1e-6


@functools.singledispatch
def divergence(
  task: Any, teacher_task: Any, student: Any, teacher: Any, batch: Batch, temperature: float
) -> Array:
  """Compares the outputs of two models under the weights of the task -> float32 [2] (sum, count).

  `divergence.register` adds other tasks.

  Args:
    task: the innermost task of the student.
    teacher_task: the same task over the teacher.
    student: outputs of the student, as `task.score` reads them.
    teacher: outputs of the teacher, as `teacher_task.score` reads them.
    batch: after `prepare`.
    temperature: divides the logits.

  Raises:
    InputError: a task whose outputs are not known.
  """
  raise InputError(
    f'{type(task).__name__}: expected a task whose outputs distillation can compare; register it '
    'with bmx.compress.divergence:divergence.register'
  )


@divergence.register(Classification)
@divergence.register(TokenClassification)
def _classes(task, teacher_task, student, teacher, batch, temperature):
  return weighted(kl(teacher, student, temperature), batch['weights'])


@divergence.register(BinaryClassification)
def _binary(task, teacher_task, student, teacher, batch, temperature):
  both = lambda out: jnp.concatenate([jnp.zeros_like(out), out], -1)
  return weighted(kl(both(teacher), both(student), temperature), batch['weights'])


@divergence.register(Regression)
def _numbers(task, teacher_task, student, teacher, batch, temperature):
  """Mean squared difference of the outputs; a number has no temperature."""
  return weighted(squared_error(student, teacher), batch['weights'])


@divergence.register(QuestionAnswering)
def _answers(task, teacher_task, student, teacher, batch, temperature):
  """Mean over the first and the last token, as in the loss of the task."""
  scores = lambda out: jnp.swapaxes(task.masked_scores(out, batch), 1, 2)
  return weighted(kl(scores(teacher), scores(student), temperature).mean(-1), batch['weights'])


@divergence.register(MaskedLM)
def _masked(task, teacher_task, student, teacher, batch, temperature):
  """Weighs the next sentence as the loss of the task does: as a full row of masked tokens."""
  (tokens, follows), (own_tokens, own_follows) = teacher, student
  vocab_size = facts_of(task.model).vocab_size
  both = _equal_width(tokens, own_tokens, vocab_size)
  total = weighted(kl(*both, temperature), batch['weights'])
  if follows is None or own_follows is None:
    return total
  second = weighted(kl(follows, own_follows, temperature), batch['rows'])
  return total.at[0].add(batch['weights'].shape[1] * second[0])


@divergence.register(CausalLM)
def _language(task, teacher_task, student, teacher, batch, temperature):
  """Logits of a large vocabulary exist for one chunk of tokens at a time, and are not stored."""
  vocab_size = facts_of(task.model).vocab_size
  if not (task.loss_method or teacher_task.loss_method):
    values = kl(*_equal_width(teacher, student, vocab_size), temperature)
    return weighted(values, batch['weights'])
  heads = _Head.of(teacher_task, teacher), _Head.of(task, student)
  chunks = math.gcd(task.chunks, batch['weights'].shape[1])

  @jax.checkpoint
  def one(inputs):
    of_teacher, own = (h.logits(x, vocab_size) for h, x in zip(heads, inputs, strict=True))
    return kl(of_teacher, own, temperature)

  values = jax.lax.map(one, tuple(_cut(head.inputs, chunks) for head in heads))
  return weighted(_join(values), batch['weights'])


def of_logits(task: Any, out: Any, function: Callable[..., Array], *rest: Array) -> Array:
  """Applies a function to logits [B, ..., V] and arrays of the same leading dimensions.

  Logits of a chunked head exist for one chunk of tokens at a time.

  Args:
    task: the innermost task.
    out: its outputs, as `score` reads them.
    function: (logits, *rest) -> float32 [B, ...].
    rest: arrays [B, ..., k].
  """
  if not isinstance(task, CausalLM) or not task.loss_method:
    return function(out, *rest)
  head, vocab_size = _Head.of(task, out), facts_of(task.model).vocab_size
  chunks = math.gcd(task.chunks, head.inputs.shape[1])
  one = lambda parts: function(head.logits(parts[0], vocab_size), *parts[1:])
  pieces = tuple(_cut(x, chunks) for x in (head.inputs, *rest))
  return _join(jax.lax.map(jax.checkpoint(one), pieces))


class _Head:
  """The head of a language model: its inputs [B, T, ...], and the logits of a part of them."""

  def __init__(self, inputs: Array, table: Array | None):
    self.inputs, self.table = inputs, table

  @classmethod
  def of(cls, task: CausalLM, value: Any) -> '_Head':
    if not task.loss_method:
      return cls(value, None)
    hidden, table = value
    return cls(hidden, gather(table, ('vocab', 'embed')))

  def logits(self, inputs: Array, vocab_size: int) -> Array:
    if self.table is None:
      return inputs[..., :vocab_size]
    table = self.table.astype(inputs.dtype)
    logits = jnp.einsum('btd,vd->btv', inputs, table, preferred_element_type=jnp.float32)
    return constrain(logits, 'batch', 'length', 'vocab')[..., :vocab_size]


def _cut(x: Array, chunks: int) -> Array:
  """Splits [B, T, ...] into [chunks, B, T / chunks, ...]; no token of a sharded T moves."""
  return jnp.moveaxis(x.reshape(len(x), -1, chunks, *x.shape[2:]), 2, 0)


def _join(x: Array) -> Array:
  """Inverse of `_cut`: [chunks, B, T / chunks] -> [B, T]."""
  return jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1)


def _equal_width(a: Array, b: Array, vocab_size: int) -> tuple[Array, Array]:
  """Cuts the padding of the vocabulary off where two models have different paddings."""
  return (a, b) if a.shape == b.shape else (a[..., :vocab_size], b[..., :vocab_size])


def real_tokens(batch: Batch, length: int) -> Array:
  """Returns which tokens of a batch are not padding: bool [B, length]."""
  if 'segment_ids' in batch:
    return batch['segment_ids'] > 0
  weights = batch['weights']
  if weights.shape[1:] == (length,):
    return weights > 0
  return jnp.ones((len(weights), length), bool)


def hidden_error(student: Array, teacher: Array, batch: Batch) -> Array:
  """Computes each example's mean squared difference, over its real tokens: [B, ..., D] -> [B]."""
  error = squared_error(student, teacher)
  if error.ndim == 2:
    return _token_mean(error, real_tokens(batch, error.shape[1]))
  return error.reshape(len(error), -1).mean(-1)


def relation_error(student: Array, teacher: Array, heads: int, batch: Batch) -> Array:
  """Computes the divergence of relations between the tokens of a segment.

  A relation is softmax(x xᵀ / √d) of queries, keys or values x, whose heads are divided anew into
  `heads` of size d: student and teacher may differ in heads and width (MiniLMv2, Wang et al. 2021,
  section 3.1). Memory grows with T².

  Args:
    student: [B, T, heads, size].
    teacher: the same, of other heads or sizes.
    heads: number of relation heads.
    batch: its `segment_ids` bound the relations.

  Returns:
    KL(teacher ‖ student), mean over heads and real tokens: float32 [B].
  """
  real = real_tokens(batch, student.shape[1])
  segments = jnp.where(real, batch.get('segment_ids', jnp.ones(real.shape, jnp.int32)), 0)
  seen = (segments[:, :, None] == segments[:, None, :])[:, None]

  def relation(x):
    x = x.reshape(*x.shape[:2], heads, -1).astype(jnp.float32)
    scores = jnp.einsum('bthd,bshd->bhts', x, x) / math.sqrt(x.shape[-1])
    return jnp.where(seen, scores, MASK_VALUE)

  return _token_mean(kl(relation(teacher), relation(student)).mean(1), real)


def _token_mean(values: Array, real: Array) -> Array:
  """Mean over real tokens: [B, T], bool [B, T] -> [B]; 0 for a row without any."""
  total, count = jnp.where(real, values, 0).sum(1), real.sum(1)
  return total / jnp.maximum(count, 1)
