"""Language modelling."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.types import Array, Batch, Data, Rows
from bmx.ops.losses import chunked_cross_entropy, cross_entropy
from bmx.tasks.common import ModelTask, counts, find

CHUNKED = 8192  # above this vocabulary logits are worth cutting into chunks


@dataclasses.dataclass(frozen=True)
class CausalLM(ModelTask):
  """Next-token cross-entropy, in nats per token.

  Reads `tokens`, `targets` int [B, T] (already shifted) and `weights` [B, T]; `positions` and
  `segment_ids` where rows are packed.

  Attributes:
    chunks: tokens are cut into so many parts, and logits exist for one of them at a time, where the
      vocabulary is above `CHUNKED`.
  """

  chunks: int = 8

  @property
  def method(self) -> str | None:
    able = hasattr(self.model, 'hidden_and_table')
    large = getattr(self.model, 'vocab', 0) > CHUNKED
    return 'hidden_and_table' if able and large and self.chunks > 1 else None

  def check(self, info: Mapping[str, Any]) -> None:
    check_text(self.model, info)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return find(batch, 'tokens'), batch.get('positions'), batch.get('segment_ids')

  def measure(self, out: Any, batch: Batch) -> Metrics:
    targets, weights = find(batch, 'targets'), batch['weights']
    if self.method:
      vocab = getattr(self.model, 'vocab', 0)
      hidden, table = out
      total, hits = chunked_cross_entropy(hidden, table, targets, weights, vocab, self.chunks)
      loss = jnp.stack([total, weights.astype(jnp.float32).sum()])
    else:
      loss, hits = weighted(cross_entropy(out, targets), weights), out.argmax(-1) == targets
    return {'loss': loss, 'accuracy': counts(hits, weights)}

  def outputs(self, out: Array, batch: Batch) -> dict[str, Array]:
    log = jax.nn.log_softmax(out.astype(jnp.float32))
    picked = jnp.take_along_axis(log, find(batch, 'targets')[..., None], -1)[..., 0]
    return {'prediction': out.argmax(-1), 'log_likelihood': picked}


def check_text(model: nn.Module, info: Mapping[str, Any]) -> None:
  """Raises InputError where a model cannot read tokens with these facts."""
  vocab, length = getattr(model, 'vocab', 0), getattr(model, 'length', 0)
  if 'vocab' not in info:
    raise InputError('a model of language needs tokens, and the data has none')
  if vocab and info['vocab'] > vocab:
    raise InputError(
      f"the data's tokenizer has {info['vocab']} ids, the model a vocabulary of {vocab}: use the "
      "model's own tokenizer, or set its vocab"
    )
  rows = info.get('length', 0)
  if length and rows > length:
    raise InputError(f'rows of {rows} tokens, but a model of {length} positions')


def perplexity(rows: Rows) -> float:
  """exp of the mean negative log-likelihood of the tokens: 'log_likelihood', 'weights' [N, T]."""
  total = -_told(rows)
  count = float(rows['weights'].sum(dtype=np.float64))
  if not count:
    raise InputError('perplexity: no token of the split has a weight')
  mean = total / count
  return math.inf if mean > 709 else math.exp(mean)  # the largest float64


def bits_per_byte(rows: Rows, data: Data) -> float:
  """Bits that the model needs for a byte of the text, whatever its tokenizer (Gao et al. 2020).

  Reads data.info['bytes'], of all the text that `rows` hold.
  """
  if 'bytes' not in data.info:
    raise InputError('bits_per_byte: the data does not tell the bytes of its text')
  return -_told(rows) / math.log(2) / data.info['bytes']


def _told(rows: Rows) -> float:
  """Nats, summed in float64."""
  missing = {'log_likelihood', 'weights'} - set(rows)
  if missing:
    raise InputError(f'no {", ".join(sorted(missing))} of tokens: this metric is for causal models')
  told = np.where(rows['weights'] > 0, rows['log_likelihood'], 0).astype(np.float64)
  return float((told * rows['weights']).sum())
