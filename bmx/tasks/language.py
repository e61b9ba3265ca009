"""Language modeling."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, HostBatch, Metadata, facts_of
from bmx.ops.checks import check_ids
from bmx.ops.losses import chunked_cross_entropy, cross_entropy
from bmx.tasks.common import ModelTask, counts, find

CHUNKED_VOCAB = 8192  # above this vocabulary size the loss is computed in chunks


@dataclasses.dataclass(frozen=True)
class CausalLM(ModelTask):
  """Next-token cross-entropy, in nats per token.

  Reads `tokens`, `targets` int [B, T] (already shifted) and `weights` [B, T]; `positions` and
  `segment_ids` if rows are packed.

  Attributes:
    chunks: number of parts that tokens are cut into above a vocabulary of `CHUNKED_VOCAB`; the
      logits of one part exist at a time.
  """

  chunks: int = 8

  def __post_init__(self):
    super().__post_init__()
    check_number('chunks', self.chunks, at_least=1)

  @property
  def loss_method(self) -> str | None:
    facts = facts_of(self.model)
    chunked = facts.chunked_head and facts.vocab_size > CHUNKED_VOCAB and self.chunks > 1
    return 'hidden_and_table' if chunked else None

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('targets', 'weights')

  def validate(self, metadata: Metadata) -> None:
    check_text(self.model, metadata)

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'targets' in rows and facts_of(self.model).vocab_size:
      vocab_size = facts_of(self.model).vocab_size
      check_ids('tokens', rows['tokens'], vocab_size, numbers)
      check_ids('targets', rows['targets'], vocab_size, numbers, rows.get('weights'))

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return find(batch, 'tokens'), batch.get('positions'), batch.get('segment_ids')

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    targets, weights = find(batch, 'targets'), batch['weights']
    if self.loss_method:
      vocab_size = facts_of(self.model).vocab_size
      hidden, table = out
      total, hits = chunked_cross_entropy(hidden, table, targets, weights, vocab_size, self.chunks)
      count = weights.astype(jnp.float32).sum()
    else:
      total, count = weighted(cross_entropy(out, targets), weights)
      hits = out.argmax(-1) == targets
    return total, count, {'accuracy': counts(hits, weights)}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    log = jax.nn.log_softmax(out.astype(jnp.float32))
    picked = jnp.take_along_axis(log, find(batch, 'targets')[..., None], -1)[..., 0]
    return {'prediction': out.argmax(-1), 'log_likelihood': picked}


def check_text(model: nn.Module, metadata: Metadata) -> None:
  """Raises InputError if a model cannot read tokens with these facts."""
  facts = facts_of(model)
  if 'vocab_size' not in metadata:
    raise InputError('the data has no tokens: a language model expects text')
  if facts.vocab_size and metadata['vocab_size'] > facts.vocab_size:
    raise InputError(
      f'vocab_size={facts.vocab_size}: expected at least {metadata["vocab_size"]}, the size of the '
      "tokenizer of the data; set the model's vocab_size or use the model's own tokenizer"
    )
  rows = metadata.get('length', 0)
  if facts.max_seq_len and rows > facts.max_seq_len:
    raise InputError(
      f'length={rows}: expected rows of at most max_seq_len={facts.max_seq_len} tokens'
    )


def perplexity(rows: HostBatch) -> float:
  """Computes exp of the mean negative log-likelihood of the tokens.

  Args:
    rows: 'log_likelihood' and 'weights', float [N, T].

  Raises:
    InputError: no token has a weight, or the task is not a causal language model.
  """
  total = -_log_likelihood(rows)
  count = float(rows['weights'].sum(dtype=np.float64))
  if not count:
    raise InputError('perplexity: expected a split with a token of weight above 0')
  mean = total / count
  return math.inf if mean > 709 else math.exp(mean)  # the largest float64


def bits_per_byte(rows: HostBatch, data: Data) -> float:
  """Computes the bits that the model needs for a byte of the text (Gao et al. 2020).

  The value does not depend on the tokenizer.

  Args:
    rows: 'log_likelihood' and 'weights', float [N, T].
    data: its metadata['bytes'] counts all the text that `rows` hold.

  Raises:
    InputError: the data does not count its bytes, or the task is not a causal language model.
  """
  if 'bytes' not in data.metadata:
    raise InputError('bits_per_byte: expected a data set whose metadata counts its bytes')
  return -_log_likelihood(rows) / math.log(2) / data.metadata['bytes']


def _log_likelihood(rows: HostBatch) -> float:
  """Sums the log-likelihood in float64, in nats."""
  missing = {'log_likelihood', 'weights'} - set(rows)
  if missing:
    raise InputError(
      f'predictions lack {", ".join(sorted(missing))}: this metric expects a causal language model'
    )
  likelihood = np.where(rows['weights'] > 0, rows['log_likelihood'], 0).astype(np.float64)
  return float((likelihood * rows['weights']).sum())
