"""Recurrent networks on flax's cells: layers, a classifier of sequences, a tagger of tokens.

The carry of a layer is {'c': [B, H], 'h': [B, H]} of an LSTM, {'h': [B, H]} of the other cells;
carries of several layers are a dict by the names of the layers.

B batch, T length, C channels, D width of the input, H units of a cell.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Facts
from bmx.models.layers import Dtype, Einsum, Embed, check_rate, check_sizes
from bmx.parallel import axes_of, constrain, gather, named, stages
from bmx.parallel.sharding import is_named

Carries = Mapping[str, Mapping[str, jax.Array]]

# LSTM (Hochreiter & Schmidhuber 1997) with a forget gate (Gers et al. 2000), GRU (Cho et al. 2014),
# a network of one tanh layer (Elman 1990).
CELLS: dict[str, Any] = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell, 'rnn': nn.SimpleCell}
# Of kernels of cells, input and recurrent. Their units have no name: the hidden state of each token
# is the input of the next, so that units on several devices would communicate at every token.
KERNEL = ('embed', None)


def check_cell(cell: str) -> None:
  """Raises InputError for an unknown cell."""
  if cell not in CELLS:
    raise InputError(
      f'cell={cell!r}: expected one of {", ".join(CELLS)}{did_you_mean(cell, CELLS)}'
    )


def check_axes(positions: jax.Array | None = None) -> None:
  """Raises InputError if the mesh in context cuts the length, or the layers into stages.

  `positions` are those of a batch, which has them if its tokens are in another order (`Reorder`).
  """
  cut = {'seq': bool(axes_of('length')) or positions is not None, 'pipe': stages() > 1}
  for axis in (axis for axis, there in cut.items() if there):
    raise InputError(
      f'mesh.{axis}: expected 1, as a recurrent network reads one token after another; set '
      f'--config.mesh.{axis}=1'
    )


class RecurrentStack(nn.Module):
  """Recurrent layers, one after another: flax's `nn.RNN` over a cell.

  Attributes:
    cell: 'lstm', 'gru' or 'rnn'.
    width: H, units of a cell.
    depth: number of layers.
    bidirectional: whether a second cell of each layer reads from the last token to the first; a
      layer's output is that of both, 2H.
    dropout: share of a layer's outputs that training drops before the next layer; the connection
      of a layer with itself has none (Zaremba et al. 2014).
    dtype: of the computation; carries of LSTM and GRU are float32.
  """

  cell: str = 'lstm'
  width: int = 128
  depth: int = 1
  bidirectional: bool = False
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  def zero_carries(self, batch: int) -> dict[str, dict[str, jax.Array]]:
    """Returns the carries of `batch` rows before their first token."""
    dtype = self.dtype if self.cell == 'rnn' else jnp.float32  # that of its outputs
    parts = ('c', 'h') if self.cell == 'lstm' else ('h',)
    zeros = lambda: constrain(jnp.zeros((batch, self.width), dtype), 'batch', None)
    return {name: {part: zeros() for part in parts} for name in self._layers}

  @property
  def _layers(self) -> list[str]:
    directions = ('forward', 'backward') if self.bidirectional else ('forward',)
    return [f'{direction}_{i}' for i in range(self.depth) for direction in directions]

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    carries: Carries | None = None,
    lengths: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
    """Applies the layers.

    Args:
      x: [B, T, D].
      carries: of the tokens before; None: zeros.
      lengths: int [B], tokens of each row, behind which is padding: it changes neither the outputs
        of the others nor a carry. None: T.
      train: whether dropout is active.

    Returns:
      (outputs [B, T, H], 2H of both directions; carries behind the last token of each row).
    """
    check_cell(self.cell)
    check_axes()
    check_rate(self.dropout)
    check_sizes(width=(self.width,), depth=(self.depth,))
    carries = self.zero_carries(x.shape[0]) if carries is None else carries
    drop, found = nn.Dropout(self.dropout, deterministic=not train), {}
    for i in range(self.depth):
      x = constrain(drop(x) if i else x, 'batch', 'length', 'act_embed')
      outputs = []
      for name in [layer for layer in self._layers if layer.endswith(f'_{i}')]:
        y, found[name] = self._layer(name, x, carries[name], lengths)
        outputs.append(y.astype(self.dtype))
      x = jnp.concatenate(outputs, -1)
    return constrain(x, 'batch', 'length', 'act_embed'), found

  def _layer(
    self, name: str, x: jax.Array, carry: Mapping[str, jax.Array], lengths: jax.Array | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    cell = CELLS[self.cell](
      self.width,
      kernel_init=named(nn.initializers.lecun_normal(), KERNEL),
      recurrent_kernel_init=named(nn.initializers.orthogonal(), KERNEL),
      bias_init=named(nn.initializers.zeros_init(), (None,)),
      dtype=self.dtype,
      parent=None,
    )
    # Gathered before the loop over tokens, not in it.
    rnn = nn.map_variables(nn.RNN, 'params', trans_in_fn=_gathered, init=self.is_initializing())
    given = (carry['c'], carry['h']) if self.cell == 'lstm' else carry['h']
    last, y = rnn(cell, name=name)(
      x,
      initial_carry=given,
      seq_lengths=lengths,
      return_carry=True,
      reverse=name.startswith('backward'),
      keep_order=True,
    )
    new = {'c': last[0], 'h': last[1]} if self.cell == 'lstm' else {'h': last}
    if lengths is not None:  # flax gives a row of length 0 the carry behind its last padding
      new = {k: jnp.where((lengths > 0)[:, None], v, carry[k]) for k, v in new.items()}
    return y, new


def _gathered(variables: Any) -> Any:
  """Gathers kernels of cells as the computation reads them; as they are while they are made."""

  def one(w):
    return gather(w, KERNEL) if not is_named(w) and w.ndim == 2 else w

  return jax.tree.map(one, variables, is_leaf=is_named)


def row_lengths(segment_ids: jax.Array | None) -> jax.Array | None:
  """Returns the tokens of each row, int [B], at least 1; None where no row has padding."""
  return None if segment_ids is None else jnp.maximum((segment_ids > 0).sum(1), 1)


class RecurrentClassifier(nn.Module):
  """Classifies sequences by the last state of each direction.

  A sequence is one of tokens, or of vectors if `vocab_size` is 0; of an image the steps are the
  rows.

  Attributes:
    num_outputs: classes, or 1 for a number.
    vocab_size: tokens the model knows; 0: inputs are numbers. `vocab_pad` more rows are stored.
    width: of the embedding, and units of a cell.
    depth: number of layers.
    cell: 'lstm', 'gru' or 'rnn'.
    bidirectional: whether a second cell of each layer reads from the end.
    dropout: share of units that training drops: of the embedding, between layers, before the head.
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    dtype: of the computation.
  """

  num_outputs: int
  vocab_size: int = 0
  width: int = 128
  depth: int = 1
  cell: str = 'lstm'
  bidirectional: bool = True
  dropout: float = 0.0
  vocab_pad: int = 0
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model. A sequence may have any length."""
    return Facts(
      vocab_size=self.vocab_size,
      num_outputs=self.num_outputs,
      padded_parameters=self.vocab_pad * self.width if self.vocab_size else 0,
    )

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    types: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Scores sequences -> [B, num_outputs].

    Args:
      inputs: tokens int [B, T], or numbers [B, T, ...].
      positions: None: tokens are in their order.
      segment_ids: int [B, T], 0 on the padding behind a row's tokens, which changes nothing; None:
        no padding.
      types: not read: in a pair of texts the separator stands between them.
      train: whether dropout is active.
    """
    check_sizes(num_outputs=(self.num_outputs,))
    check_axes(positions)
    drop, lengths = nn.Dropout(self.dropout, deterministic=not train), row_lengths(segment_ids)
    x = drop(self._embedded(inputs))
    stack = RecurrentStack(self.cell, self.width, self.depth, self.bidirectional, self.dropout,
                           self.dtype, name='stack')  # fmt: skip
    _, carries = stack(x, None, lengths, train=train)
    last = [v['h'] for k, v in carries.items() if k.endswith(f'_{self.depth - 1}')]
    x = drop(jnp.concatenate(last, -1).astype(self.dtype))
    axes = ('embed', 'classes')
    head = Einsum('bd,dc->bc', (x.shape[-1], self.num_outputs), axes, dtype=self.dtype, name='head')
    return head(constrain(x, 'batch', 'act_embed'))

  def _embedded(self, inputs: jax.Array) -> jax.Array:
    """Returns the vectors that the first layer reads, [B, T, D]."""
    if self.vocab_size and inputs.ndim == 2:
      embed = Embed(self.vocab_size, self.width, pad=self.vocab_pad, dtype=self.dtype, name='embed')
      return embed(inputs)
    if self.vocab_size or inputs.ndim < 3:
      expected = 'tokens [B, T]' if self.vocab_size else 'numbers [B, T, C]'
      raise InputError(
        f'inputs of shape {inputs.shape}: expected {expected} with vocab_size={self.vocab_size}'
      )
    return inputs.reshape(*inputs.shape[:2], -1).astype(self.dtype)


class RecurrentTagger(nn.Module):
  """Scores each token of a sequence by what both directions have read there.

  Attributes:
    num_outputs: classes of a token.
    vocab_size: tokens the model knows; `vocab_pad` more rows are stored.
    width: of the embedding, and units of a cell.
    depth: number of layers.
    cell: 'lstm', 'gru' or 'rnn'.
    dropout: share of units that training drops: of the embedding, between layers, before the head.
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    dtype: of the computation.
  """

  num_outputs: int
  vocab_size: int
  width: int = 128
  depth: int = 1
  cell: str = 'lstm'
  dropout: float = 0.0
  vocab_pad: int = 0
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model. A sequence may have any length."""
    padded = self.vocab_pad * self.width
    return Facts(vocab_size=self.vocab_size, num_outputs=self.num_outputs, padded_parameters=padded)

  @nn.compact
  def __call__(self, tokens, positions=None, segment_ids=None, types=None, *, train=False):
    """Scores tokens int [B, T] -> [B, T, num_outputs]; arguments as in `RecurrentClassifier`."""
    check_sizes(num_outputs=(self.num_outputs,))
    check_axes(positions)
    drop, lengths = nn.Dropout(self.dropout, deterministic=not train), row_lengths(segment_ids)
    embed = Embed(self.vocab_size, self.width, pad=self.vocab_pad, dtype=self.dtype, name='embed')
    stack = RecurrentStack(self.cell, self.width, self.depth, True, self.dropout, self.dtype,
                           name='stack')  # fmt: skip
    x, _ = stack(drop(embed(tokens)), None, lengths, train=train)
    axes = ('embed', 'classes')
    shape = (x.shape[-1], self.num_outputs)
    head = Einsum('btd,dc->btc', shape, axes, dtype=self.dtype, name='head')
    return head(constrain(drop(x), 'batch', 'length', 'act_embed'))
