"""Tasks of encoders: masked language modeling, classification, regression, tags."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.types import Array, Batch, HostBatch, Metadata, Noise, facts_of
from bmx.ops.checks import check_ids
from bmx.ops.losses import cross_entropy
from bmx.runtime.report import Section
from bmx.tasks import illustrations
from bmx.tasks.classification import Classification
from bmx.tasks.common import ModelTask, counts, find, num_outputs
from bmx.tasks.language import check_text
from bmx.tasks.regression import Regression


def text_inputs(batch: Batch) -> tuple[Any, ...]:
  """Returns (tokens, positions, segment_ids, types), None for those that the batch lacks."""
  return find(batch, 'tokens'), *(batch.get(k) for k in ('positions', 'segment_ids', 'types'))


FITTING_ROUNDS = 4  # of `_fitting`; what they leave of the budget is less than the words left


def _fitting(real, unit, budget):
  """Chooses units in their order while they fit the budget; one that does not fit is passed over.

  real bool [B, T], unit int [B, T] with equal numbers adjacent, budget int [B, 1] -> bool [B, T].
  """
  length = unit.shape[1]
  place = jnp.arange(length)[None, :]
  ends = (unit != jnp.roll(unit, -1, 1)) | (place == length - 1)
  last = jax.lax.cummin(jnp.where(ends, place, length), axis=1, reverse=True)
  size = jax.vmap(lambda u, r: jnp.zeros(length, jnp.int32).at[u].add(r))(unit, real)
  size = jnp.take_along_axis(size, unit, axis=1)
  chosen = jnp.zeros(real.shape, bool)
  for _ in range(FITTING_ROUNDS):
    left = budget - chosen.sum(1, keepdims=True)
    fits = real & ~chosen & (size <= left)
    through = jnp.take_along_axis(fits.cumsum(1), last, axis=1)  # tokens up to the unit's last one
    chosen |= fits & (through <= left)
  return chosen


@dataclasses.dataclass(frozen=True)
class MaskedLM(ModelTask):
  """Masked language modeling, in nats per masked token, with next-sentence prediction if possible.

  Each time a row is read, other tokens of it are chosen: `rate` of the real ones; of these 80 % are
  replaced by [MASK], 10 % by a random token, 10 % stay. Reads `tokens` and `segment_ids` int
  [B, T] (0 is padding); `words` to mask whole words; `next` int [B] for the second head.

  Attributes:
    mask: id of [MASK].
    special: ids that are never chosen, and never drawn.
    rate: share of the real tokens that are chosen.
    whole: choose whole words; of a word of more tokens than are to be chosen, single tokens.

  Source: Devlin et al. 2019, section 3.1.
  """

  mask: int = 4
  special: tuple[int, ...] = (0, 1, 2, 3, 4)
  rate: float = 0.15
  whole: bool = False

  def validate(self, metadata: Metadata) -> None:
    check_text(self.model, metadata)
    mask, special = metadata.get('mask', self.mask), metadata.get('special', self.special)
    if mask < 0:
      raise InputError('the tokenizer has no [MASK]: masked language modeling expects one')
    if mask != self.mask or sorted(special) != sorted(self.special):
      raise InputError(
        f'task.mask={self.mask}, task.special={tuple(self.special)}: expected {mask} and '
        f'{tuple(sorted(special))}, those of the tokenizer of the data'
      )
    if not 0 < self.rate < 1:
      raise InputError(f'task.rate={self.rate}: expected 0 < rate < 1, a share of the tokens')
    if facts_of(self.model).vocab_size <= len(self.special):
      raise InputError('masked language modeling expects a vocabulary beyond the special ids')

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return *text_inputs(batch), batch.get('masked_positions')

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    return self.corrupt(batch, noise.key)

  def corrupt(self, batch: Batch, key: Array) -> Batch:
    """Masks tokens, and adds the targets of the M = rate·T masked positions of each row.

    Returns:
      The batch with masked `tokens`, `masked_positions` int [B, M], `targets` int [B, M] and
      `weights` [B, M], 0 if the row has fewer; `rows` [B] is 0 for a row without weight.
    """
    tokens = find(batch, 'tokens')
    which, how, drawn = jax.random.split(key, 3)
    real = ~jnp.isin(tokens, jnp.array(self.special, tokens.dtype))
    if 'segment_ids' in batch:
      real &= batch['segment_ids'] > 0
    room = max(1, round(self.rate * tokens.shape[1]))
    positions, chosen = self._choose(real, batch, which, room)
    targets = jnp.take_along_axis(tokens, positions, axis=1)
    draw = jax.random.uniform(how, positions.shape)
    random = self._draw(drawn, positions.shape)
    new = jnp.where(draw < 0.8, self.mask, jnp.where(draw < 0.9, random, targets))
    new = jnp.where(chosen, new, targets).astype(tokens.dtype)
    rows = jnp.arange(len(tokens))[:, None]
    weights = batch['weights']
    counted = ((weights.max(1) if weights.ndim > 1 else weights) > 0).astype(jnp.float32)
    return batch | {
      'tokens': tokens.at[rows, positions].set(new),
      'masked_positions': positions,
      'targets': targets,
      'weights': chosen * counted[:, None],
      'rows': counted,
    }

  def _draw(self, key, shape):
    """Draws uniformly from the ids that are not special."""
    ids = jax.random.randint(key, shape, 0, facts_of(self.model).vocab_size - len(self.special))
    for special in sorted(self.special):  # ids from this one on move up by one
      ids = jnp.where(ids >= special, ids + 1, ids)
    return ids

  def _choose(self, real, batch, key, room):
    """Chooses positions int [B, M], and which of them count bool [B, M]."""
    score = jax.random.uniform(key, real.shape)
    budgets = [max(1, round(self.rate * n)) for n in range(real.shape[1] + 1)]
    budget = jnp.array(budgets)[real.sum(1, keepdims=True)]
    if not self.whole:
      positions = jnp.argsort(jnp.where(real, score, 2.0), axis=1)[:, :room]
      real = jnp.take_along_axis(real, positions, axis=1)
      return positions, real & (jnp.arange(room)[None, :] < budget)
    unit = self._units(real, find(batch, 'words'), budget)
    order = jnp.argsort(
      jnp.where(real, jnp.take_along_axis(score, unit, axis=1), 2.0), axis=1, stable=True
    )
    real, unit = (jnp.take_along_axis(x, order, axis=1) for x in (real, unit))
    chosen = _fitting(real, unit, budget)
    first = jnp.argsort(~chosen, axis=1, stable=True)[:, :room]
    return tuple(jnp.take_along_axis(x, first, axis=1) for x in (order, chosen))

  def _units(self, real, words, budget):
    """Numbers units that are chosen together: int [B, T], the first position of the token's word.

    A word of more tokens than the budget could never be chosen: each of its tokens is a unit. In
    text without spaces a tokenizer's word may be a sentence.
    """
    places = jnp.broadcast_to(jnp.arange(words.shape[1]), words.shape)
    words = (words - words.min(axis=1, keepdims=True)).clip(0, words.shape[1] - 1)
    sizes = jax.vmap(lambda w, r: jnp.zeros(len(w), jnp.int32).at[w].add(r))(words, real)
    firsts = jax.vmap(lambda w, p: jnp.full(len(w), len(w)).at[w].min(p))(words, places)
    sizes, firsts = (jnp.take_along_axis(x, words, axis=1) for x in (sizes, firsts))
    return jnp.where(sizes <= budget, firsts, places)

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    logits, next = out
    targets, weights = find(batch, 'targets'), batch['weights']
    loss = weighted(cross_entropy(logits, targets), weights)
    metrics = {'accuracy': counts(logits.argmax(-1) == targets, weights)}
    if next is None:
      return loss[0], loss[1], metrics
    label = find(batch, 'next')
    row = find(batch, 'rows')
    second = weighted(cross_entropy(next, label), row)
    # A row has the weight of the tokens that are masked in a full one: two means, added.
    total = loss[0] + weights.shape[1] * second[0]
    hits = counts(next.argmax(-1) == label, row)
    metrics |= {'masked_loss': loss, 'next_loss': second, 'next_accuracy': hits}
    return total, loss[1], metrics

  def postprocess(self, out: Any, batch: Batch) -> dict[str, Array]:
    """Returns the most likely token at every position; only the text's own [MASK] is masked."""
    return {'prediction': out[0].argmax(-1)}


class ReadsText(ModelTask):
  """Mixin for tasks that read tokenized text."""

  def validate(self, metadata: Metadata) -> None:
    check_text(self.model, metadata)
    super().validate(metadata)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return text_inputs(batch)


@dataclasses.dataclass(frozen=True)
class TextClassification(ReadsText, Classification):
  """Classification of texts. Reads `tokens` int [B, T] and `label` int [B]."""


@dataclasses.dataclass(frozen=True)
class TextRegression(ReadsText, Regression):
  """Regression from texts. Reads `tokens` int [B, T] and `y` float [B, 1]."""


@dataclasses.dataclass(frozen=True)
class TokenClassification(ModelTask):
  """Classification of tokens, such as named entities.

  Reads `tokens`, `targets` int [B, T]; `weights` [B, T] is 0 at tokens without a label of their own
  (later parts of a word).
  """

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('targets', 'weights')

  def validate(self, metadata: Metadata) -> None:
    check_text(self.model, metadata)
    names, outputs = metadata.get('class_names', ()), num_outputs(self.model)
    if not names:
      raise InputError('the data has no tags: token classification expects words with tags')
    if outputs not in (0, len(names)):
      raise InputError(f'num_outputs={outputs}: expected {len(names)}, the number of tags')

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'targets' in rows and num_outputs(self.model):
      check_ids('targets', rows['targets'], num_outputs(self.model), numbers, rows.get('weights'))

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return text_inputs(batch)

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    targets, weights = find(batch, 'targets'), batch['weights']
    total, count = weighted(cross_entropy(out, targets), weights)
    return total, count, {'accuracy': counts(out.argmax(-1) == targets, weights)}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    return {'prediction': out.argmax(-1)}

  def illustrate(self, rows: HostBatch, data: Data) -> list[Section]:
    names, word = data.metadata['class_names'], rows['weights'] > 0
    return [illustrations.confusion(rows['prediction'][word], rows['targets'][word], names)]
