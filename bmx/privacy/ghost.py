"""Ghost clipping: norms of the gradients of single examples without these gradients.

Two passes, each over the examples of a batch: the first computes the norm of each example's
gradient, the second the gradient of the sum of the losses, each times its clip factor. The norms
are the derivative with respect to one more scalar of each example, `square`:

- `counted` is an identity of a parameter, whose derivative by `square` is the squared norm of the
  parameter's gradient: that of one parameter exists at a time, not those of all.
- `counted_product` is one of the result of a layer y = x · w. The squared norm of xᵀ g is the sum
  over positions t, s of (x_t · x_s)(g_t · g_s), where g is the cotangent of y: the gradient of w,
  of one example, is never computed.

Source: Goodfellow 2015, Efficient per-example gradient computations; Li et al. 2022, Large language
models can be strong differentially private learners, section 4; Bu et al. 2022, Scalable and
efficient training of large convolutional neural networks with differential privacy, for the choice
between the two.

T positions, D inputs, F outputs.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, Grads, Noise, Task, Variables
from bmx.models.convolution import Conv
from bmx.models.layers import Einsum, Embed
from bmx.parallel import vmap_examples
from bmx.parallel.traced import per_example
from bmx.privacy.clip import COLLECTION, Clipped, check_collections, judged
from bmx.train.gradients import Gradient

log = logging.getLogger('bmx')
MARK = 'ghost '  # begins the name of a kernel in the jaxpr that `products` reads
PASSING = ('convert_element_type', 'sharding_constraint')  # from a parameter to its mark
CALLS = ('jit', 'pjit', 'remat', 'remat2', 'checkpoint', 'closed_call')
EXACT = jax.lax.Precision.HIGHEST  # accelerators round operands by default
LARGE = 2**24  # values of a parameter whose gradients of single examples are worth a warning


@dataclasses.dataclass(frozen=True)
class GhostClipped(Clipped):
  """`Clipped`, with the norms and the sum of two passes: equal but for rounding.

  Parameters that `products` does not find, such as biases, scales of norms, a table that is the
  head as well, or a kernel of another layer, have gradients of single examples in the first pass,
  one parameter at a time.

  Raises:
    InputError: an inner GradFn other than `bmx.train.gradients.Gradient`.
  """

  def __post_init__(self):
    super().__post_init__()
    self._task  # noqa: B018

  @property
  def _task(self) -> Task:
    if not isinstance(self.inner, Gradient):
      raise InputError(
        f'privacy.method=ghost: expected the gradient of a task, found {type(self.inner).__name__}'
        '; set --config.privacy.method=vmap'
      )
    return self.inner.task

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns the clipped sum; the count is that of the examples."""
    bound = variables[COLLECTION]['clip'] if self.adaptive else jnp.float32(self.clip)
    inner = {k: v for k, v in variables.items() if k != COLLECTION}
    params = inner['params']
    task = self._task

    def loss(params, example, row):
      one = jax.tree.map(lambda x: x[None], example)
      result = task.loss({**inner, 'params': params}, one, noise.fold(row), train=True)
      check_collections(result)
      return result.sum, result.metrics['loss']

    rows = jnp.arange(len(batch['weights']))
    alone = products(loss, params, batch)
    squares, losses = vmap_examples(_norms(loss, params, alone))(batch, rows)
    judge = jax.vmap(functools.partial(judged, bound, self.loss_bound))
    factors, values, counts, within = judge(jnp.sqrt(squares), losses)
    # An example that does not count is replaced by one that does: 0 times its gradient is 0, which
    # holds of no gradient that is not finite.
    first = jnp.argmax(counts)
    replaced = lambda x: jnp.where(counts.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, x[first][None])
    batch, rows = jax.tree.map(replaced, (batch, rows))

    def total(params):
      each = vmap_examples(lambda example, row: loss(params, example, row)[0])(batch, rows)
      return (each * factors.astype(each.dtype)).sum()

    counted = counts.sum()
    grads = jax.tree.map(lambda g: jnp.where(counted > 0, g, 0), jax.grad(total)(params))
    state = {}
    if self.adaptive:
      within = variables[COLLECTION]['within'] + within.sum()
      state[COLLECTION] = {'clip': bound, 'within': within}
    return Grads(grads, counted, {'loss': jnp.stack([values.sum(), counted])}, state)


def _norms(loss: Callable[..., Any], params: Any, alone: Mapping[str, str]) -> Callable[..., Any]:
  """Returns (example, row) -> (squared norm of the gradient, [sum of losses, count])."""

  def tapped(square, example, row):
    own = lambda name, w: w if name in alone else counted(w, square)
    with nn.intercept_methods(_counting(square, set(alone.values()))):
      return loss(tree.map_named(own, params), example, row)

  return lambda *item: jax.grad(tapped, has_aux=True)(jnp.float32(0), *item)


def counted(w: Array, square: Array) -> Array:
  """Returns w; its derivative by `square`, float32 [], is the squared norm of w's gradient."""

  @jax.custom_vjp
  def identity(w, square):
    return w

  identity.defvjp(lambda w, _: (w, None), lambda _, g: (g, jnp.square(g.astype(jnp.float32)).sum()))
  return identity(w, square)


def counted_product(y: Array, x: Array, square: Array, norm: Callable[..., Array]) -> Array:
  """Returns y; its derivative by `square`, float32 [], is `norm(x, cotangent of y)`."""

  @jax.custom_vjp
  def identity(y, x, square):
    return y

  identity.defvjp(lambda y, x, _: (y, x), lambda x, g: (g, None, norm(x, g)))
  return identity(y, x, square)


def _counting(square: Array, paths: set[str]) -> Callable[..., Any]:
  """Returns an interceptor that adds to `square` the squared norms of kernels of some modules."""

  def intercept(next_fun, args, kwargs, context):
    y = next_fun(*args, **kwargs)
    module = context.module
    path = _path(module, context.method_name)
    if path not in paths or not _is_raw(next_fun):
      return y
    norm = _NORMS[type(module), context.method_name]
    return counted_product(y, args[0], square, functools.partial(norm, module))

  return intercept


def _path(module: nn.Module, method: str) -> str:
  return f'{"/".join(module.path)}.{method}'


def _is_raw(next_fun: Any) -> bool:
  """Returns whether no other interceptor is between the caller and a method of a module.

  Others may change a kernel (fake quantization), whose gradient is not that of the parameter then.
  flax passes the method itself as a partial; if it did not, all products would be left out.
  """
  return isinstance(next_fun, functools.partial)


def _dense(module: Einsum, x: Array, g: Array) -> Array:
  contracted = math.prod(x.shape[x.ndim - module.contracted :])
  x = x.reshape(-1, contracted)
  return gram(x, g.reshape(len(x), -1))


def _convolution(module: Conv, x: Array, g: Array) -> Array:
  patches = jax.lax.conv_general_dilated_patches(
    x.astype(jnp.float32),
    module.kernel_size,
    module.strides,
    module.padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=EXACT,
  )
  return gram(patches.reshape(-1, patches.shape[-1]), g.reshape(-1, g.shape[-1]))


def _head(module: Embed, x: Array, g: Array) -> Array:
  return gram(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))


def _lookup(module: Embed, ids: Array, g: Array) -> Array:
  ids, g = ids.reshape(-1), g.reshape(-1, g.shape[-1]).astype(jnp.float32)
  return jnp.where(ids[:, None] == ids[None], _products(g), 0.0).sum().clip(0)


def gram(x: Array, g: Array) -> Array:
  """Returns the squared norm of xᵀ g: x [T, D], g [T, F] -> float32 []."""
  x, g = x.astype(jnp.float32), g.astype(jnp.float32)
  return (_products(x) * _products(g)).sum().clip(0)  # rounding may leave it below 0


def _products(x: Array) -> Array:
  """Returns the products of the rows of x with each other: [T, D] -> [T, T]."""
  return jnp.matmul(x, x.T, precision=EXACT)


_NORMS: dict[Any, Callable[..., Array]] = {
  (Einsum, 'product'): _dense,
  (Conv, 'product'): _convolution,
  (Embed, 'product'): _head,
  (Embed, 'lookup'): _lookup,
}


def _positions(module: nn.Module, x: Any, y: Any) -> int:
  """Returns T of a product x · w = y of one example."""
  if isinstance(module, Einsum):
    return math.prod(x.shape[: x.ndim - module.contracted])
  return math.prod(y.shape[:-1])


def products(loss: Callable[..., Any], params: Any, batch: Batch) -> dict[str, str]:
  """Finds the kernels whose norms a product gives: parameter -> path and method of its module.

  They are read by this product of one layer and by nothing else, once; and the T² products of
  positions with each other take less memory than the gradient of the kernel (Bu et al. 2022).

  Args:
    loss: (params, example, row) of one example.
    params: of the loss.
    batch: of many examples.
  """

  def mark(next_fun, args, kwargs, context):
    module, method = context.module, context.method_name
    if (type(module), method) in _NORMS and _is_raw(next_fun):
      x, w = args
      positions = _positions(module, x, jax.eval_shape(next_fun, x, w))
      grouped = isinstance(module, Conv) and module.groups > 1
      if 2 * positions**2 < w.size and not grouped:
        args = x, checkpoint_name(w, MARK + _path(module, method))
    return next_fun(*args, **kwargs)

  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  with per_example(), nn.intercept_methods(mark):
    jaxpr = jax.make_jaxpr(loss)(shapes, one, jax.ShapeDtypeStruct((), jnp.int32)).jaxpr
  names = list(tree.named(params))
  uses = list(_uses(jaxpr, dict(zip(jaxpr.invars, names, strict=False))))
  found = {}
  for name in names:
    own = [site for leaf, site in uses if leaf == name]
    if len(own) == 1 and own[0] and [site for _, site in uses].count(own[0]) == 1:
      found[name] = own[0]
  _warn({k: v for k, v in tree.named(params).items() if k not in found})
  return found


def _warn(others: Mapping[str, Array]) -> None:
  """Warns of large parameters whose gradients of single examples exist."""
  large = {k: v.size for k, v in others.items() if v.size > LARGE}
  if large:
    _warn_of(', '.join(f'{k} ({size:,} values)' for k, size in large.items()))


@functools.lru_cache(maxsize=64)  # a program is traced several times
def _warn_of(names: str) -> None:
  log.warning(
    'privacy.method=ghost: gradients of single examples exist of %s: only a parameter that one '
    'layer of bmx.models.layers reads, once, needs none (no tied head, no chunked loss); set more '
    'privacy.micro_batches if memory is short', names,
  )  # fmt: skip


def _uses(jaxpr: Any, known: dict[Any, str]) -> Iterator[tuple[str, str]]:
  """Yields the uses of parameters: (parameter, marked product), '' for anything else on a side.

  Args:
    jaxpr: of a loss, marked.
    known: variable -> the parameter that it is.
  """
  for e in jaxpr.eqns:
    own = [_leaf(v, known) for v in e.invars]
    name = e.primitive.name
    if name == 'name' and e.params['name'].startswith(MARK):
      yield own[0], e.params['name'].removeprefix(MARK)
    elif name in PASSING and own[0]:
      known[e.outvars[0]] = own[0]
    elif name in CALLS or name == 'scan':
      inner = _open(e.params['jaxpr'])
      # A scan reads its constants and carries several times, each slice of its inputs once.
      often = e.params['num_consts'] + e.params['num_carry'] if name == 'scan' else 0
      yield from ((leaf, '') for leaf in own[:often] if leaf)
      passed = zip(inner.invars[often:], own[often:], strict=True)
      within = {v: leaf for v, leaf in passed if leaf}
      yield from _uses(inner, within)
    else:
      yield from ((leaf, '') for leaf in own if leaf)
      for value in jax.tree.leaves(list(e.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
          yield from _uses(_open(value), {})
  yield from ((leaf, '') for leaf in (_leaf(v, known) for v in jaxpr.outvars) if leaf)


def _leaf(v: Any, known: Mapping[Any, str]) -> str:
  """Returns the parameter that a variable is, '' if it is another or a literal."""
  return '' if isinstance(v, jax.extend.core.Literal) else known.get(v, '')


def _is_jaxpr(value: Any) -> bool:
  return isinstance(value, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)


def _open(jaxpr: Any) -> Any:
  """Returns a jaxpr, closed or not, without its constants."""
  return jaxpr.jaxpr if isinstance(jaxpr, jax.extend.core.ClosedJaxpr) else jaxpr
