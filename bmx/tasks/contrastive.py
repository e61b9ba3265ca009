"""Images with words: a contrastive loss over the global batch, and retrieval both ways."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from bmx.core import tree
from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Coupling, HostBatch, Metadata
from bmx.models.clip import CLIP, Pairs, TextTower
from bmx.ops.checks import check_ids
from bmx.ops.contrast import sigmoid_pairs, softmax_pairs
from bmx.parallel import constrain
from bmx.runtime.report import Section
from bmx.tasks import hits
from bmx.tasks.common import ModelTask, counts, find
from bmx.tasks.language import check_text

KINDS = ('softmax', 'sigmoid')
SCALE = 'logit_scale'  # the parameter that `max_scale` bounds


@dataclasses.dataclass(frozen=True)
class Contrastive(ModelTask):
  """Contrast of images and captions over the global batch, in nats a pair.

  'softmax' is the loss of CLIP: the mean of the cross-entropies of the own text among all texts,
  and of the own image among all images. 'sigmoid' is that of SigLIP: each image with each text is
  one binary decision. Rows without weight are not negatives. Reads `image` [B, I, J, C], `tokens`
  int [B, T], and `caption` int [B], equal for equal captions.

  Attributes:
    kind: 'softmax', or 'sigmoid' of a model with `bias`.
    max_scale: bound of the inverse temperature, after each update. Published: 100.
    mask_duplicates: pairs of another row with the same caption do not count; False: they are
      negatives, as published.

  Raises:
    InputError: the model is not a CLIP, or lacks what the loss needs.

  Source: Radford et al. 2021, section 2.3; Zhai et al. 2023.
  """

  model: CLIP
  kind: str = 'softmax'
  max_scale: float = 100.0
  mask_duplicates: bool = True

  def __post_init__(self):
    super().__post_init__()
    check_number('max_scale', self.max_scale, above=0)
    if self.kind not in KINDS:
      raise InputError(f'kind={self.kind!r}: expected one of {", ".join(KINDS)}')
    if not isinstance(self.model, CLIP):
      raise InputError(f'task.model={type(self.model).__name__}: expected bmx.models.clip:CLIP')
    if self.model.bias != (self.kind == 'sigmoid'):
      reason = 'a bias cancels in a softmax' if self.model.bias else 'sigmoids need it'
      other = next(kind for kind in KINDS if kind != self.kind)
      raise InputError(f'task.model.bias={self.model.bias}: expected {not self.model.bias} with '
                       f'kind={self.kind!r}, or kind={other!r}; {reason}')  # fmt: skip

  @property
  def reads_end(self) -> bool:
    """Whether the embedding of a text depends on the token that ends it."""
    text: Any = self.model.text
    return not isinstance(text, TextTower) or text.pool == 'end'

  @property
  def coupling(self) -> Coupling:
    return 'loss'

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('caption',)

  def validate(self, metadata: Metadata) -> None:
    check_text(self.model, metadata)
    given, own = metadata.get('end_token'), self.model.text.end_token
    if not self.reads_end:
      length, whole = metadata.get('length'), self.model.facts.max_seq_len
      if length not in (None, whole):
        raise InputError(f'data.length={length}: expected {whole}, padding included, which a text '
                         "tower with pool='last' reads")  # fmt: skip
    elif given is not None and given != own:
      raise InputError(
        f'task.model.text.end_token={own}: expected {given}, which ends a text of the data; set '
        "'auto'"
      )

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    """Raises InputError for an id beyond the vocabulary, or a text that does not end."""
    if 'tokens' not in rows:
      return
    check_ids('tokens', rows['tokens'], self.model.facts.vocab_size, numbers)
    ended = (rows['tokens'] == self.model.text.end_token).any(1)
    if self.reads_end and not ended.all():
      raise InputError(
        f'tokens of example {numbers[int(np.argmin(ended))]}: expected end_token='
        f'{self.model.text.end_token} at the end of the text'
      )

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    if 'positions' in batch:  # the order of tokens in a ring
      raise InputError('mesh.seq: expected 1, as the text tower reads whole texts')
    return batch.get('image'), batch.get('tokens')

  def score(self, out: Pairs, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    weights = batch['weights']
    hidden = jnp.broadcast_to((weights <= 0)[None], (len(weights), len(weights)))
    if self.mask_duplicates:
      caption = find(batch, 'caption')
      hidden |= caption[:, None] == caption[None]
    hidden = constrain(hidden, 'batch', None)
    if out.image is None or out.text is None:
      raise InputError(f'batch: expected the keys image and tokens, not only {sorted(batch)}')
    pairs = {'image': (out.image, out.text), 'text': (out.text, out.image)}
    logits = {k: constrain(out.scale * (a @ b.T), 'batch', None) for k, (a, b) in pairs.items()}
    if out.bias is None:
      loss = (softmax_pairs(logits['image'], hidden) + softmax_pairs(logits['text'], hidden)) / 2
    else:
      loss = sigmoid_pairs(logits['image'] + out.bias, hidden)
    total, count = weighted(loss, weights)
    metrics = {'scale': jnp.stack([out.scale * count, count])}
    own = jnp.arange(len(weights))
    for name, one in logits.items():
      best = jnp.where(hidden & (own[:, None] != own[None]), -jnp.inf, one).argmax(-1)
      metrics[f'{name}_accuracy'] = counts(best == own, weights)
    return total, count, metrics

  def postprocess(self, out: Pairs, batch: Batch) -> dict[str, Array]:
    return {k: v for k, v in (('image', out.image), ('text', out.text)) if v is not None}

  def transform(self, tx: Any, steps: int) -> Any:
    """Returns the optimizer, after which the learned scale is at most `max_scale`."""
    return bounded(tx, SCALE, math.log(self.max_scale))

  def illustrate(self, rows: HostBatch, data: Data) -> Sequence[Section]:
    return hits.retrieved(rows, data)


def bounded(tx: optax.GradientTransformation, name: str, most: float) -> Any:
  """Returns an optimizer after whose update a parameter is at most `most`, wherever it is.

  Args:
    tx: the optimizer.
    name: last part of the parameter's path.
    most: the bound.
  """
  inner = optax.with_extra_args_support(tx)

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
    updates, state = inner.update(updates, state, params, **extra)

    def bound(path: str, change: Any, value: Any) -> Any:
      if path.rsplit('/', 1)[-1] != name:
        return change
      return jnp.minimum(value + change, most) - value

    return tree.map_named(bound, updates, params, is_leaf=tree.is_rows), state

  return optax.GradientTransformationExtraArgs(inner.init, update)
