"""LoRA: low-rank adapters of a frozen base (Hu et al. 2022), as a task around a task.

params['adapters']  PATH/kernel_a, PATH/kernel_b: see `ops.lowrank`
params['trained']   plain parameters that `train` matches, such as a new head
frozen              every other parameter, constant: kept once, beside the checkpoints
quantized           kernels of a quantized base (QLoRA, Dettmers et al. 2023), likewise
base                digest of the plain kernels of a base kept in fewer bits, uint8 [32]
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core import streams, tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number
from bmx.core.types import Batch, Noise, Out, Variables
from bmx.models import kernels
from bmx.models.kernels import QUANTIZED, Recorded
from bmx.models.layers import Einsum, check_rate
from bmx.ops import lowrank, stored
from bmx.optim.optimizers import DECAYED
from bmx.parallel import gather
from bmx.parallel.sharding import Named, is_named
from bmx.tasks.common import Wrapper

FROZEN, ADAPTERS, TRAINED = 'frozen', 'adapters', 'trained'
BASE, DIGEST = 'base', 'digest'
FLOATS = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class LoRA(Wrapper):
  """Adds scale · A·B to the chosen kernels of a frozen base: y + scale · (dropout(x)·A)·B.

  B starts at zero, so that training starts from the base. A config starts it from `init.path`.

  Attributes:
    inner: the task; its model is the base.
    rank: columns of A, rows of B.
    alpha: the scale is alpha / rank.
    targets: regex of the paths of the kernels that get an adapter: 'query|value',
      'attention/|feed_forward/'.
    dropout: rate, on the input of an adapter.
    rslora: the scale is alpha / √rank (Kalajdzievski 2023).
    train: regex of plain parameters that train whole, such as a new head; '' trains none.
    base: how the frozen kernels and tables are kept: 'float32', 'bfloat16', or, kernels alone,
      'int8', 'nf4', 'int4', 'fp8'.
    group: weights that share a scale in an 'nf4' or 'int4' base; divides every kernel's last
      contracted dimension.

  Raises:
    InputError: a value out of range; an inner task that adapters cannot be around.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: str = 'query|value'
  dropout: float = 0.0
  rslora: bool = False
  train: str = ''
  base: str = 'float32'
  group: int = 64
  role: ClassVar[str] = 'adapters'
  columns_word: ClassVar[str] = 'rank'
  zeroed: ClassVar[str] = lowrank.B  # the part that is zero where an adapter adds nothing

  def __post_init__(self):
    super().__post_init__()
    if self.rank < 1:
      raise InputError(f'rank={self.rank}: expected at least 1')
    check_number('alpha', self.alpha, above=0)
    check_rate(self.dropout)
    known = (*FLOATS, *stored.KINDS)
    if self.base not in known:
      fix = did_you_mean(self.base, known)
      raise InputError(f'base={self.base!r}: expected one of {", ".join(known)}{fix}')
    if self._quantizes and QUANTIZED in self.inner.constant:
      raise InputError(
        f"base={self.base!r}: expected 'float32' around a task that is quantized already"
      )

  @property
  def scale(self) -> float:
    """Factor of A·B."""
    return self.alpha / (math.sqrt(self.columns) if self.rslora else self.columns)

  @property
  def columns(self) -> int:
    """Columns of A as it is stored, the word `columns_word`."""
    return self.rank

  @property
  def _quantizes(self) -> bool:
    return self.base in stored.KINDS

  @property
  def constant(self) -> tuple[str, ...]:
    own = (FROZEN, QUANTIZED) if self._quantizes else (FROZEN,)
    reduced = self.base != 'float32' or QUANTIZED in self.inner.constant
    return (*own, *(BASE,) * reduced, *self.inner.constant)

  def init(self, noise: Noise, batch: Batch) -> Variables:
    with kernels.recorded() as found:
      variables = dict(self.inner.init(noise, batch))
    params = variables.pop('params')
    targets = found.matching(self.targets)
    for path, kernel in targets.items():
      largest = lowrank.largest_rank(kernel.shape, kernel.contracted)
      if self.columns > largest:
        raise InputError(
          f'{self.columns_word}={self.columns}: expected at most {largest}, the smaller side of '
          f'{path}/kernel {list(kernel.shape)}'
        )
    trained = self._trained(params, targets)
    layers = dict(_layers(params)) | dict(_layers(variables.get(QUANTIZED, {})))
    key = noise.fold(streams.ADAPTERS).key
    adapters: dict[str, Any] = {}
    for i, (path, kernel) in enumerate(targets.items()):
      made = self.factors(jax.random.fold_in(key, i), kernel, layers[path])
      adapters |= {f'{path}/{name}': leaf for name, leaf in made.items()}
    split = self._split(params, trained, found)
    split['params'] = {ADAPTERS: tree.nested(adapters), **split['params']}
    if BASE in self.constant:
      split[BASE] = {DIGEST: jnp.zeros(32, jnp.uint8)}  # unknown: `peft.record_base` sets it
    return {**variables, **split}

  def factors(
    self, key: jax.Array, kernel: kernels.Kernel, layers: tuple[int, ...]
  ) -> dict[str, Any]:
    """Returns new parts of an adapter, boxed with the names of the kernel's dimensions.

    A is uniform with the variance 1 / (3 · fan in), as in PEFT; B is zero.

    Args:
      key: of this adapter.
      kernel: that it adapts.
      layers: () or (number of stacked layers,).
    """
    cut, lead = kernel.contracted, ('layers',) * len(layers)
    bound = math.prod(kernel.shape[:cut]) ** -0.5
    shape = (*layers, *kernel.shape[:cut], self.columns)
    a = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    b = jnp.zeros((*layers, self.columns, *kernel.shape[cut:]), jnp.float32)
    return {
      lowrank.A: Named(a, (*lead, *kernel.axes[:cut], None)),
      lowrank.B: Named(b, (*lead, None, *kernel.axes[cut:])),
    }

  def _trained(self, params: Any, targets: Mapping[str, Any]) -> set[str]:
    """Names of the plain parameters that train whole."""
    if not self.train:
      return set()
    mask = tree.mask(params, self.train, required=False, is_leaf=is_named)
    found = {name for name, is_matched in tree.named(mask).items() if is_matched}
    if not found:
      names = '\n  '.join([*tree.named(params, is_named)][:40])
      raise InputError(
        f'train={self.train!r}: expected a regex that matches a parameter of:\n  {names}'
      )
    twice = sorted(path for path in targets if f'{path}/kernel' in found)
    if twice:
      raise InputError(
        f'train={self.train!r}: expected no kernel that targets={self.targets!r} matches; both '
        f'match {twice[0]}'
      )
    return found

  def _split(self, params: Any, trained: set[str], found: Recorded) -> dict[str, Any]:
    """Sorts new plain weights, boxed, into 'params' (trained ones), FROZEN and QUANTIZED."""
    leaves = tree.named(params, is_leaf=is_named)
    whole = tree.nested({k: v for k, v in leaves.items() if k in trained})
    frozen = tree.nested({k: v for k, v in leaves.items() if k not in trained})
    split = {'params': {TRAINED: whole} if whole else {}}
    if self._quantizes:
      frozen, split[QUANTIZED] = kernels.split(frozen, found, self.base, self.group)
    return {**split, FROZEN: self._reduced(frozen)}

  def _reduced(self, frozen: Any) -> Any:
    """Casts frozen weights that multiply to bfloat16 if the base is kept so."""
    if self.base != 'bfloat16':
      return frozen

    def one(name: str, leaf: Any) -> Any:
      cast = lambda x: x.astype(jnp.bfloat16)
      return jax.tree.map(cast, leaf) if re.search(DECAYED, name) else leaf

    return tree.map_named(one, frozen, is_leaf=is_named)

  def _inner(self, variables: Variables) -> dict[str, Any]:
    """Returns the variables of the inner task; kernels of a quantized base are QUANTIZED still."""
    params = variables['params']
    plain = tree.named(variables[FROZEN]) | tree.named(params.get(TRAINED, {}))
    rest = {k: v for k, v in variables.items() if k not in (FROZEN, BASE, 'params')}
    return {**rest, 'params': tree.nested(plain)}

  def forward(
    self,
    variables: Variables,
    batch: Batch,
    noise: Noise,
    *,
    train: bool,
    method: str = 'loss',
    **apply: Any,
  ) -> tuple[Out, Variables]:
    own = (ADAPTERS, QUANTIZED) if self._quantizes else (ADAPTERS,)
    apply['read'] = (*apply.get('read', ()), *own)
    inner = {**self._inner(variables), ADAPTERS: variables['params'][ADAPTERS]}
    with nn.intercept_methods(_adapting(self.scale, self.dropout if train else 0.0)):
      return self.inner.forward(inner, batch, noise, train=train, method=method, **apply)

  def merged_params(self, variables: Variables) -> Variables:
    inner = self._inner(variables)
    if self._quantizes:
      inner['params'] = kernels.join(inner['params'], inner.pop(QUANTIZED))
    plain = self.inner.merged_params(inner)
    plain = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, plain)
    return lowrank.add(plain, variables['params'][ADAPTERS], self.scale)

  def take(self, variables: Variables, given: Variables) -> Variables:
    """Returns variables whose base is the given one and whose adapters add nothing."""
    taken = dict(self.inner.take(self._inner(variables), given))
    plain, params = tree.named(taken.pop('params')), dict(variables['params'])
    empty = lambda name, x: jnp.zeros_like(x) if name.endswith(f'/{self.zeroed}') else x
    params[ADAPTERS] = tree.map_named(empty, params[ADAPTERS])
    if TRAINED in params:
      params[TRAINED] = tree.map_named(lambda name, _: plain[name], params[TRAINED])
    if self._quantizes:
      taken[QUANTIZED] = requantized(variables[QUANTIZED], plain)
    frozen = tree.map_named(lambda name, _: plain[name], variables[FROZEN])
    own = {BASE: variables[BASE]} if BASE in variables else {}
    return {**taken, **own, 'params': params, FROZEN: self._reduced(frozen)}


def _layers(tree_of_boxes: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields (path of a kernel, () or (number of stacked layers,))."""
  for name, box in tree.named(tree_of_boxes, is_leaf=is_named).items():
    path, kernel, _ = name.partition('/kernel')
    if kernel and is_named(box):
      yield path, box.value.shape[:1] if box.names[0] == 'layers' else ()


def requantized(old: Any, plain: Mapping[str, jax.Array]) -> Any:
  """Quantizes plain weights, by name, as a quantized collection `old` is."""
  leaves, shape = jax.tree_util.tree_flatten_with_path(old, is_leaf=stored.is_stored)
  made = []
  for keys, leaf in leaves:
    kind = stored.kind_of(leaf)
    name = jax.tree_util.keystr(keys, simple=True, separator='/')
    if kind in stored.WHOLE:
      dims = [i for i, size in enumerate(leaf['scale'].shape) if size == 1]
      made.append(stored.quantize(plain[name], kind, dims))
      continue
    axis = stored.packed_axis(leaf)
    group = 2 * leaf[kind].shape[axis]
    made.append(stored.quantize(plain[name], kind, [axis - 1], group))
  return jax.tree_util.tree_unflatten(shape, made)


def _adapting(scale: float, dropout: float) -> Any:
  """Returns an interceptor that adds the adapters of the collection ADAPTERS."""

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    y = next_fun(*args, **kwargs)
    ours = isinstance(module, Einsum) and context.method_name == '__call__'
    if not ours or not module.has_variable(ADAPTERS, lowrank.A):
      return y
    x = args[0].astype(module.dtype)
    if dropout:
      kept = jax.random.bernoulli(module.make_rng('dropout'), 1 - dropout, x.shape)
      x = jnp.where(kept, x / (1 - dropout), jnp.zeros_like(x))
    return y + scale * lowrank.product(module.equation, x, _parts(module))

  return intercept


def _parts(module: Einsum) -> dict[str, jax.Array]:
  """Returns the parts of a module's adapter as the computation reads them."""
  cut = module.contracted
  names = {
    lowrank.A: (*module.axes[:cut], None),
    lowrank.B: (None, *module.axes[cut:]),
    lowrank.SINGULAR: (None,),
  }
  there = {k: v for k, v in names.items() if module.has_variable(ADAPTERS, k)}
  read = lambda name: module.get_variable(ADAPTERS, name).astype(module.dtype)
  return {name: gather(read(name), axes) for name, axes in there.items()}
