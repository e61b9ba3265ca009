"""What encoders are trained for: masked words, and then classes, numbers, tags, answers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.types import Array, Batch, Variables
from bmx.ops.losses import cross_entropy
from bmx.ops.ring import NEVER
from bmx.tasks.classification import Classification
from bmx.tasks.common import ModelTask, classes, counts, find
from bmx.tasks.language import check_text
from bmx.tasks.regression import Regression


def text_inputs(batch: Batch) -> tuple[Any, ...]:
  """tokens, positions, segment_ids, types, as far as the batch has them."""
  return find(batch, 'tokens'), *(batch.get(k) for k in ('positions', 'segment_ids', 'types'))


@dataclasses.dataclass(frozen=True)
class MaskedLM(ModelTask):
  """Masked language modelling (Devlin et al. 2019, section 3.1), in nats per masked token, and
  next-sentence prediction where the model has that head.

  Each time a row is read, other tokens of it are chosen: `rate` of the real ones; of these 80 % are
  replaced by [MASK], 10 % by a random token, 10 % stay. Reads `tokens` and `segment_ids` int
  [B, T] (0 is padding); `words` where whole words are masked; `next` int [B] for the second head.

  Attributes:
    mask: id of [MASK]. special: ids that are never chosen, and never drawn.
    whole: choose whole words, as long as they fit the number of tokens to choose.
  """

  mask: int = 4
  special: tuple[int, ...] = (0, 1, 2, 3, 4)
  rate: float = 0.15
  whole: bool = False

  def check(self, info: Mapping[str, Any]) -> None:
    check_text(self.model, info)
    mask, special = info.get('mask', self.mask), info.get('special', self.special)
    if mask < 0:
      raise InputError('masked language modelling needs a tokenizer with [MASK]; the data has none')
    if mask != self.mask or sorted(special) != sorted(self.special):
      raise InputError(
        f"the tokenizer's [MASK] is {mask} and its special ids are {tuple(sorted(special))}; set "
        f'task.mask and task.special, now {self.mask} and {tuple(self.special)}'
      )
    if not 0 < self.rate < 1:
      raise InputError(f'task.rate={self.rate} is no share of the tokens')
    if getattr(self.model, 'vocab', 0) <= len(self.special):
      raise InputError('masked language modelling needs a vocabulary beyond the special ids')

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return *text_inputs(batch), batch.get('places')

  def loss(
    self, params: Variables, collections: Variables, batch: Batch, key: Array, *, train: bool
  ) -> tuple[Array, tuple[Metrics, Variables]]:
    noise, dropout = jax.random.split(key)
    return super().loss(params, collections, self.corrupt(batch, noise), dropout, train=train)

  def corrupt(self, batch: Batch, key: Array) -> Batch:
    """With masked `tokens`, and for the M = rate·T places of each row that are to be told: `places`
    int [B, M], `targets` int [B, M], `weights` [B, M], 0 where the row has no more. `rows` [B] is 0
    for a row that does not count."""
    tokens = find(batch, 'tokens')
    which, how, drawn = jax.random.split(key, 3)
    real = ~jnp.isin(tokens, jnp.array(self.special, tokens.dtype))
    if 'segment_ids' in batch:
      real &= batch['segment_ids'] > 0
    room = max(1, round(self.rate * tokens.shape[1]))
    places, chosen = self._choose(real, batch, which, room)
    targets = jnp.take_along_axis(tokens, places, axis=1)
    draw = jax.random.uniform(how, places.shape)
    random = self._draw(drawn, places.shape)
    new = jnp.where(draw < 0.8, self.mask, jnp.where(draw < 0.9, random, targets))
    new = jnp.where(chosen, new, targets).astype(tokens.dtype)
    rows = jnp.arange(len(tokens))[:, None]
    weights = batch['weights']
    counted = ((weights.max(1) if weights.ndim > 1 else weights) > 0).astype(jnp.float32)
    return batch | {
      'tokens': tokens.at[rows, places].set(new),
      'places': places,
      'targets': targets,
      'weights': chosen * counted[:, None],
      'rows': counted,
    }

  def _draw(self, key, shape):
    """Ids that are not special, each as likely."""
    ids = jax.random.randint(key, shape, 0, getattr(self.model, 'vocab', 0) - len(self.special))
    for special in sorted(self.special):  # ids from there on move up by one
      ids = jnp.where(ids >= special, ids + 1, ids)
    return ids

  def _choose(self, real, batch, key, room):
    """-> (places int [B, M], which of them count bool [B, M])."""
    score = jax.random.uniform(key, real.shape)
    budgets = [max(1, round(self.rate * n)) for n in range(real.shape[1] + 1)]
    budget = jnp.array(budgets)[real.sum(1, keepdims=True)]
    if not self.whole:
      places = jnp.argsort(jnp.where(real, score, 2.0), axis=1)[:, :room]
      real = jnp.take_along_axis(real, places, axis=1)
      return places, real & (jnp.arange(room)[None, :] < budget)
    words = find(batch, 'words')
    words = (words - words.min(axis=1, keepdims=True)).clip(0, real.shape[1] - 1)
    size = jax.vmap(lambda w, r: jnp.zeros(len(w), jnp.int32).at[w].add(r))(words, real)
    real &= jnp.take_along_axis(size, words, axis=1) <= budget  # longer words are never chosen
    # All tokens of a word have one score; a stable sort keeps them together.
    score = jnp.take_along_axis(score, words, axis=1)
    order = jnp.argsort(jnp.where(real, score, 2.0), axis=1, stable=True)
    word = jnp.take_along_axis(jnp.where(real, words, -1), order, axis=1)
    place = jnp.arange(real.shape[1])[None, :]
    ends = (word != jnp.roll(word, -1, 1)) | (place == real.shape[1] - 1)
    last = jax.lax.cummin(jnp.where(ends, place, real.shape[1]), axis=1, reverse=True)
    # Counted from the front: a word that does not fit any more ends the choice.
    return order[:, :room], ((word >= 0) & (last < budget))[:, :room]

  def measure(self, out: Any, batch: Batch) -> Metrics:
    logits, next = out
    targets, weights = find(batch, 'targets'), batch['weights']
    loss = weighted(cross_entropy(logits, targets), weights)
    metrics = {'loss': loss, 'accuracy': counts(logits.argmax(-1) == targets, weights)}
    if next is None:
      return metrics
    label = find(batch, 'next')
    row = find(batch, 'rows')
    second = weighted(cross_entropy(next, label), row)
    # A row weighs as much as the tokens that are masked in a full one: two means, added.
    total = loss[0] + weights.shape[1] * second[0]
    hits = counts(next.argmax(-1) == label, row)
    return metrics | {
      'loss': jnp.stack([total, loss[1]]),
      'masked_loss': loss,
      'next_loss': second,
      'next_accuracy': hits,
    }

  @property
  def told(self) -> tuple[str, ...]:
    """A batch's `targets` are the tokens that follow, which are not what is predicted here."""
    return ()

  def outputs(self, out: Any, batch: Batch) -> dict[str, Array]:
    """What would stand at every place: nothing is masked but what the text says."""
    return {'prediction': out[0].argmax(-1)}


class ReadsText(ModelTask):
  """A task on texts, before what it makes of them."""

  def check(self, info: Mapping[str, Any]) -> None:
    check_text(self.model, info)
    super().check(info)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return text_inputs(batch)


@dataclasses.dataclass(frozen=True)
class TextClassification(ReadsText, Classification):
  """Which class a text is of. Reads `tokens` int [B, T] and `label` int [B]."""


@dataclasses.dataclass(frozen=True)
class TextRegression(ReadsText, Regression):
  """A number for a text. Reads `tokens` int [B, T] and `y` float [B, 1]."""


@dataclasses.dataclass(frozen=True)
class TokenClassification(ModelTask):
  """A class for each token, named entities for instance. Reads `tokens`, `targets` int [B, T];
  `weights` [B, T] is 0 at tokens that have no label of their own (later parts of a word)."""

  def check(self, info: Mapping[str, Any]) -> None:
    check_text(self.model, info)
    names = info.get('names', ())
    if not names:
      raise InputError('token classification needs tags, and the data has none')
    if classes(self.model) not in (0, len(names)):
      raise InputError(f'the data has {len(names)} tags, the model {classes(self.model)} outputs')

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return text_inputs(batch)

  def measure(self, out: Array, batch: Batch) -> Metrics:
    targets, weights = find(batch, 'targets'), batch['weights']
    return {
      'loss': weighted(cross_entropy(out, targets), weights),
      'accuracy': counts(out.argmax(-1) == targets, weights),
    }

  def outputs(self, out: Array, batch: Batch) -> dict[str, Array]:
    return {'prediction': out.argmax(-1)}


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(ModelTask):
  """Where the answer stands: its first and its last token (Devlin et al. 2019, section 4.2). Reads
  `tokens` int [B, T], `first` and `last` int [B] (0, the first token, where a row has no answer)
  and `context` int [B, T], 1 where an answer may stand.

  Attributes:
    longest: tokens that a predicted answer has at most.
  """

  longest: int = 30

  def check(self, info: Mapping[str, Any]) -> None:
    check_text(self.model, info)
    if 'questions' not in info:
      raise InputError('question answering needs questions, and the data has none')
    if classes(self.model) not in (0, 2):
      raise InputError(f'question answering needs outputs=2, not {classes(self.model)}')
    if self.longest < 1:
      raise InputError(f'task.longest={self.longest}: an answer has at least one token')

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return text_inputs(batch)

  def measure(self, out: Array, batch: Batch) -> Metrics:
    first, last, weights = find(batch, 'first'), find(batch, 'last'), batch['weights']
    allowed = self._allowed(batch)
    scores = jnp.where(allowed[..., None], self._in_order(out, batch), NEVER)
    loss = cross_entropy(scores[..., 0], first) + cross_entropy(scores[..., 1], last)
    hits = (scores[..., 0].argmax(-1) == first) & (scores[..., 1].argmax(-1) == last)
    return {'loss': weighted(loss / 2, weights), 'accuracy': counts(hits, weights)}

  def _in_order(self, out: Array, batch: Batch) -> Array:
    """Scores float32 [B, T, 2] of the tokens as they were counted, where a layout has reordered
    them."""
    out = out.astype(jnp.float32)
    if 'positions' not in batch:
      return out
    return jnp.take_along_axis(out, jnp.argsort(batch['positions'], axis=1)[..., None], axis=1)

  def _allowed(self, batch: Batch) -> Array:
    """The context, and the first token, which says that there is no answer."""
    context = find(batch, 'context') > 0
    return context.at[:, 0].set(True)

  def outputs(self, out: Array, batch: Batch) -> dict[str, Array]:
    """The best span [B, 2] in the context, and how much better than no answer it scores [B]."""
    start, end = jnp.moveaxis(self._in_order(out, batch), -1, 0)
    context = find(batch, 'context') > 0
    span = start[:, :, None] + end[:, None, :]
    ahead = jnp.arange(out.shape[1])[None, :] - jnp.arange(out.shape[1])[:, None]
    fits = ((ahead >= 0) & (ahead < self.longest))[None]
    span = jnp.where(fits & context[:, :, None] & context[:, None, :], span, NEVER)
    flat = span.reshape(len(out), -1)
    best = flat.argmax(-1)
    none = start[:, 0] + end[:, 0]
    return {
      'prediction': jnp.stack(jnp.divmod(best, out.shape[1]), axis=-1),
      'score': flat.max(-1) - none,
    }
