"""Questions whose answers stand in a text: a task of encoders."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.types import Array, Batch, HostBatch, Metadata
from bmx.ops.checks import check_ids
from bmx.ops.losses import cross_entropy
from bmx.ops.masks import MASK_VALUE
from bmx.tasks.common import ModelTask, counts, find, num_outputs
from bmx.tasks.encoder import text_inputs
from bmx.tasks.language import check_text


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(ModelTask):
  """Extraction of an answer: its first and its last token.

  Reads `tokens` int [B, T], `first` and `last` int [B] (0, the first token, for a row without an
  answer) and `context` int [B, T], 1 at tokens that an answer may contain.

  Attributes:
    longest: largest number of tokens of a predicted answer.

  Source: Devlin et al. 2019, section 4.2.
  """

  longest: int = 30

  def validate(self, metadata: Metadata) -> None:
    check_text(self.model, metadata)
    outputs = num_outputs(self.model)
    if 'questions' not in metadata:
      raise InputError('the data has no questions: question answering expects some')
    if outputs not in (0, 2):
      raise InputError(f'num_outputs={outputs}: expected 2, first and last token of the answer')
    if self.longest < 1:
      raise InputError(f'task.longest={self.longest}: expected at least 1 token')

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'first' not in rows or 'context' not in rows:
      return
    allowed = rows['context'] > 0
    allowed[:, 0] = True
    for name in ('first', 'last'):
      check_ids(name, rows[name], allowed.shape[1], numbers)
      outside = np.flatnonzero(~np.take_along_axis(allowed, rows[name][:, None], 1)[:, 0])
      if len(outside):
        n = outside[0]
        raise InputError(f'{name}={rows[name][n]} of example {numbers[n]}: expected a token of '
                         'the context, or 0')  # fmt: skip

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return text_inputs(batch)

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    first, last, weights = find(batch, 'first'), find(batch, 'last'), batch['weights']
    scores = self.masked_scores(out, batch)
    loss = cross_entropy(scores[..., 0], first) + cross_entropy(scores[..., 1], last)
    hits = (scores[..., 0].argmax(-1) == first) & (scores[..., 1].argmax(-1) == last)
    total, count = weighted(loss / 2, weights)
    return total, count, {'accuracy': counts(hits, weights)}

  def masked_scores(self, out: Array, batch: Batch) -> Array:
    """Returns scores float32 [B, T, 2] in the original order, masked outside the context."""
    return jnp.where(self._allowed(batch)[..., None], self._in_order(out, batch), MASK_VALUE)

  def _in_order(self, out: Array, batch: Batch) -> Array:
    """Returns scores float32 [B, T, 2] in the original order, if a layout has reordered tokens."""
    out = out.astype(jnp.float32)
    if 'positions' not in batch:
      return out
    return jnp.take_along_axis(out, jnp.argsort(batch['positions'], axis=1)[..., None], axis=1)

  def _allowed(self, batch: Batch) -> Array:
    """Returns the mask of the context and the first token (no answer): bool [B, T]."""
    context = find(batch, 'context') > 0
    return context.at[:, 0].set(True)

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    """Returns the best span [B, 2] in the context, and scores [B].

    They are the span's score minus that of no answer, and the score of no answer, which is that of
    the first token.
    """
    start, end = jnp.moveaxis(self._in_order(out, batch), -1, 0)
    context = find(batch, 'context') > 0
    span = start[:, :, None] + end[:, None, :]
    ahead = jnp.arange(out.shape[1])[None, :] - jnp.arange(out.shape[1])[:, None]
    fits = ((ahead >= 0) & (ahead < self.longest))[None]
    span = jnp.where(fits & context[:, :, None] & context[:, None, :], span, MASK_VALUE)
    flat = span.reshape(out.shape[0], -1)
    best = flat.argmax(-1)
    none = start[:, 0] + end[:, 0]
    return {
      'prediction': jnp.stack(jnp.divmod(best, out.shape[1]), axis=-1),
      'score': flat.max(-1) - none,
      'no_answer': none,
    }
