"""Quantized weights and activations: a task whose kernels are stored in few bits, and its training.

`Quantized` reads kernels from the constant collection 'quantized'; `FakeQuantize` trains weights
that are rounded in the forward pass, so that quantizing them afterwards changes nothing.
"""

import contextlib
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from bmx.core.errors import InputError
from bmx.core.types import Batch, Noise, Out, Variables
from bmx.models import kernels
from bmx.models.kernels import QUANTIZED
from bmx.models.layers import Einsum
from bmx.ops import stored
from bmx.parallel import stages
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

  Raises:
    InputError: an unknown kind, or activations of another kind than the weights.
  """

  kind: str = 'int8'
  group: int = 32
  targets: str = ''
  activations: str = ''

  def __post_init__(self):
    stored.check_kind(self.kind)
    if self.activations and self.activations not in stored.WHOLE:
      raise InputError(
        f'activations={self.activations!r}: expected one of {", ".join(stored.WHOLE)}, or empty'
      )
    if self.activations and self.activations != self.kind:
      raise InputError(
        f'activations={self.activations!r}: expected weights of the same kind, not '
        f'kind={self.kind!r}; set kind={self.activations!r}, or leave activations as they are'
      )

  def chosen(self, found: kernels.Recorded) -> dict[str, kernels.Kernel]:
    """Returns the kernels to quantize.

    Raises InputError if the regex matches none, or a layer cannot be intercepted.
    """
    chosen = found.matching(self.targets)
    if found.others and not self.targets:
      path, name = next(iter(found.others.items()))
      raise InputError(
        f'{path} is a {name}, which cannot be intercepted: expected layers of bmx.models.layers; '
        'name the kernels to quantize with targets=REGEX'
      )
    return chosen


@dataclasses.dataclass(frozen=True)
class Quantized(Wrapper):
  """A task whose kernels are quantized: the constant collection 'quantized' beside 'params'.

  Attributes:
    inner: the task of the plain weights.
    kind: see `Scheme`.
    group: see `Scheme`.
    targets: see `Scheme`.
    activations: see `Scheme`.
    input_scales: kernels have a factor for each input beside their codes.

  Raises:
    InputError: see `Scheme`.
  """

  kind: str = 'int8'
  group: int = 32
  targets: str = ''
  activations: str = ''
  input_scales: bool = False
  role: ClassVar[str] = 'quantized'

  def __post_init__(self):
    super().__post_init__()
    self.scheme  # noqa: B018 (checks the words)

  @property
  def scheme(self) -> Scheme:
    """The words of quantization."""
    return Scheme(self.kind, self.group, self.targets, self.activations)

  @property
  def constant(self) -> tuple[str, ...]:
    return (QUANTIZED, *self.inner.constant)

  def init(self, noise: Noise, batch: Batch) -> Variables:
    with kernels.recorded() as found:
      variables = dict(self.inner.init(noise, batch))
    chosen = self.scheme.chosen(found)
    split = kernels.split(
      variables.pop('params'), chosen, self.kind, self.group, input_scales=self.input_scales
    )
    return {**variables, 'params': split[0], QUANTIZED: split[1]}

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
class FakeQuantize(Wrapper):
  """Trains weights that are rounded in the forward pass (Jacob et al. 2018, section 3).

  The gradient passes the rounding as it is (straight through; Bengio et al. 2013). The parameters
  keep their precision; `Quantized` computes the same once they are rounded (`bmx compress`).

  Attributes:
    inner: the task of the plain weights.
    kind: see `Scheme`.
    group: see `Scheme`.
    targets: see `Scheme`.
    activations: see `Scheme`.

  Raises:
    InputError: see `Scheme`.
  """

  kind: str = 'int8'
  group: int = 32
  targets: str = ''
  activations: str = ''
  role: ClassVar[str] = 'fake'

  def __post_init__(self):
    super().__post_init__()
    self.scheme  # noqa: B018 (checks the words)

  @property
  def scheme(self) -> Scheme:
    """The words of quantization."""
    return Scheme(self.kind, self.group, self.targets, self.activations)

  def init(self, noise: Noise, batch: Batch) -> Variables:
    with kernels.recorded() as found:
      variables = self.inner.init(noise, batch)
    kernels.split(variables['params'], self.scheme.chosen(found), self.kind, self.group)  # refuses
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
    chosen = self.scheme.chosen(found)
    params = variables['params']
    rounded = kernels.join(*kernels.split(params, chosen, self.kind, self.group))
    straight = jax.tree.map(straight_through, params, rounded)

    def round_input(next_fun, args, kwargs, context):
      path = '/'.join(context.module.path)
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
