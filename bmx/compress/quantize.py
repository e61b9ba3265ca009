"""Quantized weights and activations: a task whose kernels are stored in few bits, and its training.

`Quantized` reads kernels from the constant collection 'quantized'; `FakeQuantize` trains weights
that are rounded in the forward pass, so that quantizing them afterwards changes nothing.
"""

import contextlib
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Batch, Noise, Out, Variables
from bmx.models import kernels
from bmx.models.kernels import QUANTIZED
from bmx.models.layers import Einsum
from bmx.ops import stored
from bmx.parallel import stages
from bmx.parallel.sharding import is_named
from bmx.tasks.common import Wrapper


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How weights and activations are quantized.

  Attributes:
    kind: of the weights: 'int8' or 'fp8', a scale for each output; 'int4' or 'nf4', a scale for
      each group of inputs.
    group: weights that share a scale, of 'int4' and 'nf4'; divides the last contracted dimension.
    targets: regex of the paths of the kernels to quantize; '' is all.
    activations: '', or 'int8' or 'fp8' for products of codes, with a scale for each token; of the
      weights' kind.
    tables: kind of embedding tables, with a scale for each row: 'int8' or 'fp8'; '' leaves them.

  Raises:
    InputError: an unknown kind, or activations of another kind than the weights.
  """

  kind: str = 'int8'
  group: int = 32
  targets: str = ''
  activations: str = ''
  tables: str = ''

  def __post_init__(self):
    stored.check_kind(self.kind)
    for name in ('activations', 'tables'):
      value = self.activations if name == 'activations' else self.tables
      if value and value not in stored.WHOLE:
        raise InputError(f'{name}={value!r}: expected one of {", ".join(stored.WHOLE)}, or empty')
    if self.activations and self.activations != self.kind:
      raise InputError(
        f'activations={self.activations!r}: expected weights of the same kind, not '
        f'kind={self.kind!r}; set kind={self.activations!r}, or leave activations as they are'
      )

  def chosen(self, found: kernels.Recorded) -> dict[str, kernels.Kernel]:
    """Returns the weights to quantize: path of the parameter -> the weight.

    Raises InputError if the regex matches none, or a layer cannot be intercepted.
    """
    return found.quantizable(self.targets) | (found.tables if self.tables else {})

  def kind_of(self, path: str) -> str:
    """Returns the kind of a weight."""
    return self.tables if path.endswith('/table') else self.kind

  def split(
    self, params: Any, found: kernels.Recorded, input_scales: bool = False
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters without the chosen weights, and these as they are stored."""
    chosen = self.chosen(found)
    tables = {k: v for k, v in chosen.items() if k.endswith('/table')}
    rest = {k: v for k, v in chosen.items() if k not in tables}
    plain, codes = kernels.split(params, rest, self.kind, self.group, input_scales)
    if not tables:
      return plain, codes
    plain, more = kernels.split(plain, tables, self.tables)
    return plain, tree.nested(tree.named(codes, is_named) | tree.named(more, is_named))


@dataclasses.dataclass(frozen=True)
class Rounding(Wrapper):
  """A task with the words of a Scheme.

  Attributes:
    inner: the task of the plain weights.
    kind: see `Scheme`.
    group: see `Scheme`.
    targets: see `Scheme`.
    activations: see `Scheme`.
    tables: see `Scheme`.

  Raises:
    InputError: see `Scheme`.
  """

  kind: str = 'int8'
  group: int = 32
  targets: str = ''
  activations: str = ''
  tables: str = ''

  def __post_init__(self):
    super().__post_init__()
    self.scheme  # noqa: B018 (checks the words)

  @property
  def scheme(self) -> Scheme:
    """The words of quantization."""
    return Scheme(self.kind, self.group, self.targets, self.activations, self.tables)


@dataclasses.dataclass(frozen=True)
class Quantized(Rounding):
  """A task whose kernels are quantized: the constant collection 'quantized' beside 'params'.

  Attributes:
    inner: the task of the plain weights.
    kind: see `Scheme`.
    group: see `Scheme`.
    targets: see `Scheme`.
    activations: see `Scheme`.
    tables: see `Scheme`.
    input_scales: kernels have a factor for each input beside their codes.

  Raises:
    InputError: see `Scheme`.
  """

  input_scales: bool = False
  role: ClassVar[str] = 'quantized'

  @property
  def constant(self) -> tuple[str, ...]:
    return (QUANTIZED, *self.inner.constant)

  def init(self, noise: Noise, batch: Batch) -> Variables:
    with kernels.recorded() as found:
      variables = dict(self.inner.init(noise, batch))
    plain, codes = self.scheme.split(variables.pop('params'), found, self.input_scales)
    return {**variables, 'params': plain, QUANTIZED: codes}

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
    """Calls the inner task, whose model reads the stored kernels.

    Raises InputError in training with quantized activations, whose gradient is zero.
    """
    if train and self.activations:
      raise InputError(
        f'activations={self.activations!r}: expected empty in training, as rounding has no '
        'gradient; train with bmx.compress.quantize:FakeQuantize, and quantize afterwards'
      )
    apply['read'] = (*apply.get('read', ()), QUANTIZED)
    codes = (
      nn.intercept_methods(_product_of_codes) if self.activations else contextlib.nullcontext()
    )
    with codes:
      return self.inner.forward(variables, batch, noise, train=train, method=method, **apply)

  def merged_params(self, variables: Variables) -> Variables:
    plain = self.inner.merged_params(variables)
    return kernels.join(plain, variables[QUANTIZED])

  def take(self, variables: Variables, given: Variables) -> Variables:
    """Rounds the given weights to the nearest codes, where the variables have codes."""
    rest, codes = kernels.split_like(given, variables[QUANTIZED])
    return {**self.inner.take(variables, rest), QUANTIZED: codes}


@dataclasses.dataclass(frozen=True)
class FakeQuantize(Rounding):
  """Trains weights that are rounded in the forward pass (Jacob et al. 2018, section 3).

  The gradient passes the rounding as it is (straight through; Bengio et al. 2013). The parameters
  keep their precision; `Quantized` computes the same once they are rounded (`bmx compress`).

  Attributes:
    inner: the task of the plain weights.
    kind: see `Scheme`.
    group: see `Scheme`.
    targets: see `Scheme`.
    activations: see `Scheme`.
    tables: see `Scheme`.

  Raises:
    InputError: see `Scheme`.
  """

  role: ClassVar[str] = 'fake'

  def init(self, noise: Noise, batch: Batch) -> Variables:
    with kernels.recorded() as found:
      variables = self.inner.init(noise, batch)
    self.scheme.split(variables['params'], found)  # raises where a group does not divide
    return variables

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
    if self.activations and stages() > 1:
      raise InputError(
        f'mesh.pipe={stages()}: expected 1 with activations={self.activations!r}; stages of a '
        'pipeline are not intercepted'
      )
    with kernels.recorded() as found:
      jax.eval_shape(lambda: self.inner.init(noise, batch))
    chosen, params = self.scheme.chosen(found), variables['params']
    rounded = kernels.join(*self.scheme.split(params, found))
    straight = jax.tree.map(straight_through, params, rounded)

    def round_input(next_fun, args, kwargs, context):
      path = '/'.join((*context.module.path, 'kernel'))
      if not (self.activations and context.method_name == 'product' and path in chosen):
        return next_fun(*args, **kwargs)
      x, w = args
      contracted = tuple(range(x.ndim - chosen[path].contracted, x.ndim))
      codes = stored.quantize(x, self.activations, contracted)
      return next_fun(straight_through(x, stored.dequantize(codes, x.dtype)), w)

    with nn.intercept_methods(round_input):
      given = {**variables, 'params': straight}
      return self.inner.forward(given, batch, noise, train=train, method=method, **apply)


def straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
  """Returns rounded values with the gradient of x."""
  return x + jax.lax.stop_gradient(rounded - x)


def _product_of_codes(next_fun, args, kwargs, context):
  """Interceptor: products with stored kernels are products of codes."""
  module = context.module
  if context.method_name != 'product' or not isinstance(module, Einsum):
    return next_fun(*args, **kwargs)
  if not stored.is_stored(module.stored):
    return next_fun(*args, **kwargs)
  y = stored.product(module.equation, args[0], module.codes(), module.contracted)
  return y.astype(module.dtype)
