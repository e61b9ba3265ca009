"""Two towers: embeddings of users and items whose product scores a pair."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.layers import Dtype, check_rate, check_sizes
from bmx.models.mlp import MLP
from bmx.models.recsys import rounded
from bmx.models.tables import Table
from bmx.parallel import constrain, gather, named


class Tower(nn.Module):
  """An embedding of ids: a row of a table, plus the mean of those of its features, then layers.

  The features of all ids are a constant collection, 'catalog': int32 [size, most], padded with -1.

  Attributes:
    size: ids.
    width: of an embedding, D.
    features: number of features, and the most of one id; (0, 0) without.
    widths: units of hidden layers; () without layers.
    dropout: share of the embedding, and of hidden units, that training drops.
    stddev: of the normal distribution that rows are drawn from.
    own: an id has a row of its own.
    dtype: of the computation.
  """

  size: int
  width: int
  features: tuple[int, int] = (0, 0)
  widths: tuple[int, ...] = ()
  dropout: float = 0.0
  stddev: float = 0.1
  own: bool = True
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, ids: jax.Array, more: jax.Array | None = None, *, train: bool = False
  ) -> jax.Array:
    """Embeds ids int [B] -> [B, D]; adds `more` [B, D] before the layers."""
    x = jnp.zeros((len(ids), self.width), self.dtype)
    if self.own:
      rows = rounded(self.size)
      x += Table(rows, self.width, stddev=self.stddev, dtype=self.dtype, name='ids')(ids)
    if more is not None:
      x += more
    count, most = self.features
    if count:
      unknown = jnp.full((self.size, most), -1, jnp.int32)
      own = self.variable('catalog', 'features', lambda: unknown).value[ids]
      axes = (None, 'embed')
      init = named(nn.initializers.normal(self.stddev), axes)
      rows = gather(self.param('features', init, (count, self.width), jnp.float32), axes)
      x += average(rows.astype(self.dtype)[jnp.maximum(own, 0)], own >= 0)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    if self.widths:
      x = MLP(self.width, self.widths, dropout=self.dropout, dtype=self.dtype, name='layers')(
        x, train=train
      )
    return constrain(x, 'batch', 'act_embed')


class TwoTowers(nn.Module):
  """A tower of users and a tower of items; the score of a pair is the product of its embeddings.

  An item also has a bias, which is the last number of its embedding; that of a user is 1 there. The
  items that a user rated last add the mean of their rows of a table of their own.

  Attributes:
    num_users: of the data.
    num_items: of the data.
    history: items rated last that a user's embedding reads, of the data; 0: none.
    user_ids: a user has a row of its own; without it, `history` is all that is known of a user.
    width: of the embeddings, D.
    widths: units of hidden layers of each tower; () without.
    user_features: of the data, see `Tower.features`.
    item_features: of the data.
    dropout: see `Tower.dropout`.
    stddev: of the normal distribution that rows are drawn from.
    sparse: tables get gradients of the rows of a batch alone (see `optim.tables`).
    dtype: of the computation.

  Source: Covington et al. 2016; Yi et al. 2019, section 3.
  """

  num_users: int
  num_items: int
  history: int = 0
  user_ids: bool = True
  width: int = 32
  widths: tuple[int, ...] = ()
  user_features: tuple[int, int] = (0, 0)
  item_features: tuple[int, int] = (0, 0)
  dropout: float = 0.0
  stddev: float = 0.1
  sparse: bool = True
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    sizes = {
      'user/ids/table': (self.num_users, self.width) if self.user_ids else None,
      'item/ids/table': (self.num_items, self.width),
      'past/table': (self.num_items, self.width) if self.history else None,
      'bias/table': (self.num_items, 1),
    }
    there = {name: size for name, size in sizes.items() if size}
    padded = sum((rounded(rows) - rows) * width for rows, width in there.values())
    return Facts(padded_parameters=padded, sparse_tables=tuple(there) if self.sparse else ())

  def setup(self):
    check_sizes(num_users=(self.num_users,), num_items=(self.num_items,), width=(self.width,))
    check_rate(self.dropout)
    if not self.user_ids and not self.history:
      raise InputError('user_ids=False: expected a history; set data.history=10, say')
    tower = lambda size, features, ids: Tower(
      size, self.width, features, self.widths, self.dropout, self.stddev, ids, self.dtype
    )
    self.user = tower(self.num_users, self.user_features, self.user_ids)
    self.item = tower(self.num_items, self.item_features, True)
    rows = rounded(self.num_items)
    if self.history:
      self.past = Table(rows, self.width, stddev=self.stddev, dtype=self.dtype)
    self.bias = Table(rows, 1, ('vocab', None), stddev=0.01, dtype=self.dtype)

  def pairs(
    self, user: jax.Array, past: jax.Array | None, item: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Embeds users int [B] with items rated last int [B, L], and items int [B] -> [B, D + 1] each.

    `past` is padded with -1; None where `history` is 0.
    """
    return self._users(user, past, train), self._items(item, train)

  def __call__(
    self,
    user: jax.Array,
    past: jax.Array | None = None,
    item: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Embeds users, see `pairs`, -> [B, D + 1], and every item -> [num_items, D + 1]."""
    every = jnp.arange(rounded(self.num_items), dtype=jnp.int32)  # a batch that the mesh divides
    return self._users(user, past, train), self._items(every, train)[: self.num_items]

  def _users(self, user: jax.Array, past: jax.Array | None, train: bool) -> jax.Array:
    more = None
    if self.history:
      if past is None or past.shape[1:] != (self.history,):
        given = None if past is None else past.shape[1]
        raise InputError(
          f'history={self.history}: expected as many items of each user, not {given}'
        )
      more = average(self.past(jnp.maximum(past, 0)), past >= 0)
    u = self.user(user, more, train=train)
    return jnp.concatenate([u, jnp.ones((len(u), 1), u.dtype)], 1)

  def _items(self, item: jax.Array, train: bool) -> jax.Array:
    return jnp.concatenate([self.item(item, train=train), self.bias(item)], 1)


def average(rows: jax.Array, there: jax.Array) -> jax.Array:
  """Averages rows [B, L, D] where `there` bool [B, L] holds -> [B, D]; 0 where it never does."""
  weights = there.astype(rows.dtype)
  return (rows * weights[..., None]).sum(1) / jnp.maximum(weights.sum(1), 1)[:, None]
