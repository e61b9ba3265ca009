"""Retrieval: a softmax over the items of a batch, and the best items of a user."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Coupling, HostBatch, Metadata, Noise, Variables
from bmx.data.recommend.ratings import TOP, Ratings
from bmx.models.towers import TwoTowers
from bmx.ops.losses import cross_entropy
from bmx.ops.masks import MASK_VALUE
from bmx.ops.search import search
from bmx.parallel import constrain
from bmx.tasks.common import ModelTask, counts, find


@dataclasses.dataclass(frozen=True)
class Retrieval(ModelTask):
  """Softmax over the items of the global batch, corrected for how often each is drawn.

  The logit of user i and item j is u_i · v_j / temperature - log q_j. A batch draws ratings without
  preference, so that q_j, the item's share of the training ratings, is known and need not be
  estimated from the stream. Items equal to the positive one, and rows without weight, are not
  negatives. Reads `user`, `item` int [B], `log_q` float [B], and `history` int [B, L] if the model
  does; predictions read `seen` int [B, S].

  Attributes:
    metadata: of the data: sizes and features of users and items.
    temperature: divides the products.
    correction: subtracts log q; without it, popular items are negatives too often.
    l2: times the squared lengths of both embeddings of a pair, in training only.
    top: items of a prediction.
    exclude_seen: predictions have no item that the user has rated.
    block: items whose scores exist at once in a prediction.

  Raises:
    InputError: a number is out of range; the model is not TwoTowers.

  Source: Yi et al. 2019, equations 3 to 5; Bengio & Senécal 2008.
  """

  model: TwoTowers
  metadata: Metadata = dataclasses.field(default_factory=dict, repr=False, compare=False)
  temperature: float = 1.0
  correction: bool = True
  l2: float = 0.0
  top: int = TOP
  exclude_seen: bool = True
  block: int = 65_536

  def __post_init__(self):
    super().__post_init__()
    check_number('temperature', self.temperature, above=0)
    check_number('l2', self.l2, at_least=0)
    check_number('top', self.top, at_least=1)
    check_number('block', self.block, at_least=1)
    if not isinstance(self.model, TwoTowers):
      raise InputError(f'task.model={type(self.model).__name__}: expected '
                       'bmx.models.towers:TwoTowers')  # fmt: skip

  @property
  def coupling(self) -> Coupling:
    return 'loss'

  @property
  def constant(self) -> tuple[str, ...]:
    features = self.model.user_features, self.model.item_features
    return ('catalog',) if any(count for count, _ in features) else ()

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('user', 'item')

  @property
  def loss_method(self) -> str | None:
    return 'pairs'

  def validate(self, metadata: Metadata) -> None:
    for name in ('num_users', 'num_items', 'history', 'user_features', 'item_features'):
      own, data = _plain(self.model, name), metadata.get(name)
      if data is None:
        raise InputError(
          f'the data have no {name}: retrieval expects bmx.data.recommend.ratings:ratings'
        )
      if own != (tuple(data) if isinstance(data, list | tuple) else data):
        raise InputError(f"{name}={own}: expected {data}, that of the data; set it to 'auto'")

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    """Raises InputError for a user or an item that the model lacks; -1 is an unknown one."""
    for name, bound in (('user', self.model.num_users), ('item', self.model.num_items)):
      bad = (rows[name] < -1) | (rows[name] >= bound) if name in rows else np.zeros(1, bool)
      if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
          f'{name}={rows[name][row]} of example {numbers[row]}: expected below {bound}'
        )

  def init(self, noise: Noise, batch: Batch) -> Variables:
    variables = dict(super().init(noise, batch))
    for side in variables.get('catalog', {}):
      own = self.metadata.get(f'{side}_feature_ids', ())
      table = np.full((len(own), _plain(self.model, f'{side}_features')[1]), -1, np.int32)
      for row, features in zip(table, own, strict=True):
        row[: len(features)] = features
      variables['catalog'] = {**variables['catalog'], side: {'features': jnp.asarray(table)}}
    return variables

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    # An unknown user or item reads row 0, and its row has weight 0 or is replaced by `Ratings`.
    item = batch.get('item')
    known = None if item is None else jnp.maximum(item, 0)
    return jnp.maximum(find(batch, 'user'), 0), batch.get('history'), known

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    u, v = out
    item = find(batch, 'item')
    weights = batch['weights'] * (item >= 0)
    logits = (u @ v.T).astype(jnp.float32) / self.temperature
    if self.correction:
      logits -= find(batch, 'log_q')[None]
    own = jnp.eye(len(item), dtype=bool)
    hidden = (item[:, None] == item[None]) | (weights <= 0)[None]
    logits = constrain(jnp.where(hidden & ~own, MASK_VALUE, logits), 'batch', None)
    target = jnp.arange(len(item))
    loss = cross_entropy(logits, target)
    if train and self.l2:
      loss += self.l2 * (jnp.square(u).sum(-1) + jnp.square(v).sum(-1)).astype(jnp.float32)
    total, count = weighted(loss, weights)
    return total, count, {'batch_accuracy': counts(logits.argmax(-1) == target, weights)}

  def postprocess(self, out: Any, batch: Batch) -> dict[str, Array]:
    u, v = out
    seen = find(batch, 'seen') if self.exclude_seen else None
    ids, scores = search(u, v, seen, self.top, self.block)
    return {'prediction': ids, 'score': scores / self.temperature}


def recall_at_10(rows: HostBatch) -> float:
  """Computes the share of users whose held-out item is among the first 10 predicted.

  rows: 'prediction' int [N, k] of k >= 10 items, best first, and 'item' int [N].
  """
  return float((_ranks(*_read(rows)) < TOP).mean())


def ndcg_at_10(rows: HostBatch) -> float:
  """Computes the mean of 1 / log2(2 + rank) of the held-out item, 0 beyond rank 9.

  rows: as of `recall_at_10`. Source: Järvelin & Kekäläinen 2002, with one relevant item.
  """
  rank = _ranks(*_read(rows))
  return float(np.where(rank < TOP, 1 / np.log2(2.0 + rank), 0).mean())


def popularity_recall_at_10(rows: HostBatch, data: Data) -> float:
  """Computes `recall_at_10` of the items with most training ratings that the user has not rated."""
  return _of_popular(recall_at_10, rows, data)


def popularity_ndcg_at_10(rows: HostBatch, data: Data) -> float:
  """Computes `ndcg_at_10` of the items with most training ratings that the user has not rated."""
  return _of_popular(ndcg_at_10, rows, data)


def _of_popular(metric: Callable[[HostBatch], float], rows: HostBatch, data: Data) -> float:
  examples = data.examples
  if not isinstance(examples, Ratings):
    raise InputError(f'{type(examples).__name__} has no counts of items: expected '
                     'bmx.data.recommend.ratings:ratings')  # fmt: skip
  return metric({**rows, 'prediction': examples.popular})


def _read(rows: HostBatch) -> tuple[np.ndarray, np.ndarray]:
  if 'prediction' not in rows or 'item' not in rows:
    raise InputError(f'the metric reads prediction, item, but the predictions have {sorted(rows)}')
  prediction, item = rows['prediction'], rows['item']
  if prediction.ndim != 2 or prediction.shape[1] < TOP:
    raise InputError(f'the metric reads {TOP} items of each user, not {prediction.shape}; set '
                     f'task.top={TOP}')  # fmt: skip
  if not len(item):
    raise InputError('the metric needs examples; the split has none')
  return prediction, item


def _ranks(prediction: np.ndarray, item: np.ndarray) -> np.ndarray:
  """Places of the items in the predictions, int [N]; k where an item is not predicted."""
  hit = (prediction == item[:, None]) & (item >= 0)[:, None]
  return np.where(hit.any(1), hit.argmax(1), prediction.shape[1])


def _plain(model: TwoTowers, name: str) -> Any:
  """A size of a model by its name; pairs as tuples."""
  sizes = {
    'num_users': model.num_users,
    'num_items': model.num_items,
    'history': model.history,
    'user_features': tuple(model.user_features),
    'item_features': tuple(model.item_features),
  }
  return sizes[name]
