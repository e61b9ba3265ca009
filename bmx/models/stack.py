"""A stack of blocks: one after another, as a scan over stacked parameters, or as a pipeline."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.models.attention import WEIGHTS
from bmx.models.block import Block, BlockConfig
from bmx.ops.attention import counting
from bmx.ops.cache import Cache
from bmx.ops.kernels import RESULT
from bmx.parallel import pipeline, stages, unbox

STACKED, ONE = 'blocks/', 'block_'  # how a Stack names its layers, see `Stack.scan`


def layers_apart(params: Any) -> dict[str, tuple[jax.Array, int | None]]:
  """Names parameters as a Stack without scan does, without copies.

  Returns:
    'stack/block_3/...' -> (the stacked leaf, 3); a parameter outside stacks -> (the leaf, None).
  """
  found = {}
  for name, leaf in tree.named(params).items():
    if f'/{STACKED}' not in name:
      found[name] = leaf, None
      continue
    for i in range(leaf.shape[0]):
      found[name.replace(f'/{STACKED}', f'/{ONE}{i}/')] = leaf, i
  return found


def unstacked(params: Any) -> dict[str, Any]:
  """Converts parameters of a scanned Stack to those of one without scan.

  'blocks/...' [L, ...] become 'block_0/...', 'block_1/...', ...; also in variables, below
  'params/' and other collections.
  """
  apart = layers_apart(params)
  return tree.nested({k: leaf if i is None else leaf[i] for k, (leaf, i) in apart.items()})


# Collections of outputs and inputs of layers, which the stages of a pipeline do not give.
COLLECTED = ('intermediates', 'hessians', WEIGHTS)
CUDNN = 'dot_product_attention_fwd_wrapper'  # primitive of jax


def _gives_product(primitive: Any, *_: Any, **params: Any) -> bool:
  """Policy of `jax.checkpoint`: keeps products with weights and results of attention kernels.

  Products with weights have no batch dimension. Scores of plain attention, [B, N, T, S], are not
  kept. Of splash attention its named results are: the kernel itself writes each normalizer 128
  times.
  """
  if primitive.name == 'dot_general':
    return not any(params['dimension_numbers'][1])
  return primitive.name == CUDNN or (primitive.name == 'name' and params['name'] == RESULT)


REMAT = {'none': None, 'dots': _gives_product, 'full': None}


class Stack(nn.Module):
  """A sequence of `depth` Blocks; in stages if the mesh has an axis 'pipe'.

  Auxiliary values of experts are sown into the collection 'aux', each the mean over layers.

  Attributes:
    depth: number of blocks.
    block: configuration of each.
    scan: one compiled block over stacked parameters ('blocks', a leading layer dimension) instead
      of `depth` copies ('block_0', ...). A pipeline requires it.
    remat: recomputation in the backward pass: 'none'; 'dots', all but the results of products
      with weights and of fused attention (a ring and experts run again); 'full', all of a block.
    microbatches: of a pipeline; 0 is twice its stages, which leaves a third of the time as bubble.
  """

  depth: int
  block: BlockConfig
  scan: bool = False
  remat: str = 'none'
  microbatches: int = 0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
    cache: Cache | None = None,
    context: jax.Array | None = None,
    context_ids: jax.Array | None = None,
    bias: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Applies the blocks.

    While outputs of modules are captured (the collection 'intermediates' is mutable), or the blocks
    have a collection besides 'params', a pipeline is computed as a plain scan: its stages get the
    parameters alone.

    Args:
      x: [B, T, D].
      positions: int [B, T].
      segment_ids: int [B, T], or None if every row is one segment.
      train: whether dropout is active.
      cache: keys and values of earlier tokens.
      context: [B, S, C], what blocks with `cross` read; None if the cache has its memory.
      context_ids: int [B, S], see `Attention`.
      bias: float [1, N, T, S'], added to the scores of self-attention in every block.

    Returns:
      ([B, T, D], the cache with these tokens, and with the memory of the context).

    Raises:
      InputError: a cache in a scanned or pipelined stack; a pipeline without scan, or with
        stochastic depth, a context or a bias.
    """
    check_number('drop_path', self.block.drop_path, at_least=0, below=1)
    if stages() > 1 and self.block.drop_path:
      raise InputError(f'drop_path={self.block.drop_path}: expected 0 with mesh.pipe={stages()}')
    if stages() > 1 and not self.scan:
      raise InputError(f'mesh.pipe={stages()}: expected stacked layers; set scan=True')
    if stages() > 1 and (self.block.cross or bias is not None):
      raise InputError(
        f'mesh.pipe={stages()}: expected 1 for blocks with cross-attention or relative positions; '
        'set --config.mesh.pipe=1'
      )
    if cache is not None and self.scan:
      raise InputError('scan=True: a cache expects layers one by one; set scan=False')
    if stages() > 1 and not self.is_initializing() and not self._needs_scan():
      x, aux = self._pipeline(x, positions, segment_ids, train)
    elif self.scan:
      x, aux = self._scan(x, positions, segment_ids, train, (context, context_ids, bias))
    else:
      more = context, context_ids, bias
      x, aux, cache = self._loop(x, positions, segment_ids, train, cache, more)
    for name, value in aux.items():
      self.sow('aux', name, value.sum() / self.depth)
    return x, cache

  def _needs_scan(self) -> bool:
    others = set(self.variables) - {'params', 'aux'}
    collected = any(self.is_mutable_collection(name) for name in COLLECTED)
    return collected or any('blocks' in self.variables[name] for name in others)

  def _drop_path(self, train: bool) -> jax.Array | None:
    """Returns the rate of stochastic depth of each layer, float32 [L]; None without."""
    if not (train and self.block.drop_path):
      return None
    return jnp.linspace(0, self.block.drop_path, self.depth)

  def _loop(self, x, positions, segment_ids, train, cache, more):
    block, total, layers = self._block(), {}, []
    rates = self._drop_path(train)
    for i in range(self.depth):
      given = None if cache is None else cache.layer(i)
      one = block(self.block, train, name=f'block_{i}')
      rate = None if rates is None else rates[i]
      x, (aux, layer) = one(x, positions, segment_ids, given, rate, *more)
      total = {k: total.get(k, 0.0) + v for k, v in aux.items()}
      layers.append(layer)
    return x, total, None if cache is None else cache.advance(layers, x.shape[1])

  def _block(self) -> Any:
    if self.remat not in REMAT:
      raise InputError(f'remat={self.remat!r}: expected one of {", ".join(REMAT)}')
    if self.remat == 'none' or counting():
      return Block
    return nn.remat(Block, prevent_cse=not self.scan, policy=REMAT[self.remat])

  def _scan(self, x, positions, segment_ids, train, more):
    scan: Any = nn.scan
    blocks = scan(
      self._block(),
      # Every collection has a leading layer dimension: adapters and captured outputs, too.
      variable_axes={True: 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(*[nn.broadcast] * 3, 0, *[nn.broadcast] * 3),
      length=self.depth,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    one = blocks(self.block, train, name='blocks')
    x, (aux, _) = one(x, positions, segment_ids, None, self._drop_path(train), *more)
    return x, aux

  def _pipeline(self, x, positions, segment_ids, train):
    params = unbox(self.get_variable('params', 'blocks'))
    key = self.make_rng('dropout') if train and self.block.dropout else None
    block = Block(self.block, train, parent=None)

    def apply(params, number, inputs):
      rngs = {'dropout': jax.random.fold_in(key, number)} if key is not None else {}
      x, positions, segment_ids = inputs
      x, (aux, _) = block.apply({'params': params}, x, positions, segment_ids, rngs=rngs)
      return (x, positions, segment_ids), aux

    inputs = (x, positions, segment_ids)
    (x, _, _), aux = pipeline(apply, params, inputs, self.microbatches or 2 * stages())
    return x, aux
