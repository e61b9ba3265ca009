"""Methods of mode `compress`: a run's plain weights -> those of a smaller run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bmx.compress import calibrate, methods, oneshot
from bmx.compress.quantize import Scheme
from bmx.compress.rule import Rule
from bmx.compress.shrink import shrink
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.types import Variables
from bmx.models import kernels
from bmx.train.evaluate import eval_noise


class Plain(NamedTuple):
  """A run without wrappers, whose weights a method compresses.

  Attributes:
    experiment: of the innermost task.
    variables: its plain weights and its other collections.
    words: the config words `compress`.
    open_data: reads the training data -> the experiment with them.
  """

  experiment: Experiment
  variables: Variables
  words: Mapping[str, Any]
  open_data: Callable[[], Experiment]


@dataclasses.dataclass(frozen=True)
class Compressed:
  """The result of a method.

  Attributes:
    variables: of the new task.
    wrapper: config part of a wrapper around the plain task, without 'inner'; {} for none.
    model: config part of another model; {} for the same.
  """

  variables: Variables
  wrapper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def scheme_of(words: Mapping[str, Any]) -> Scheme:
  """Returns the scheme of the config words `compress`.

  Raises InputError naming the word.
  """
  try:
    return Scheme(**{f.name: words[f.name] for f in dataclasses.fields(Scheme)})
  except InputError as error:
    raise InputError(f'compress: {error}') from None


def _quantize(method: methods.Method) -> Callable[[Plain], Compressed]:
  """Returns the quantization of a run by a way to round kernels."""

  def quantize(plain: Plain) -> Compressed:
    x, words = plain.experiment, plain.words
    scheme = scheme_of(words)
    with kernels.recorded() as found:
      jax.eval_shape(lambda: x.task.init(eval_noise(), _zeros(x)))
    hessians = calibration(plain) if method.calibrated else {}
    made = methods.quantize(
      plain.variables['params'], scheme.chosen(found), scheme, method, hessians, x.layout
    )
    wrapper = {'call': 'bmx.compress.quantize:Quantized', **dataclasses.asdict(scheme)}
    wrapper |= {'input_scales': True} if method.input_scales else {}
    return Compressed({**plain.variables, **made}, wrapper)

  return quantize


def calibration(plain: Plain) -> dict[str, jax.Array]:
  """Returns second moments of the inputs of each layer, from `compress.examples` examples.

  Raises InputError if the run's training data cannot be read, or no example is asked for.
  """
  examples, method = plain.words['examples'], plain.words['method']
  other = 'magnitude' if method == 'wanda' else 'nearest'
  if examples < 1:
    raise InputError(
      f'compress.examples={examples}: expected at least 1 for compress.method={method}; or set '
      f'compress.method={other}, which reads no data'
    )
  try:
    x = plain.open_data()
  except InputError as error:
    raise InputError(
      f'compress.method={method}: expected the training data of the run, to calibrate: {error}; '
      f'or set compress.method={other}, which reads no data'
    ) from None
  batches = calibrate.batches(x.data, x.layout, examples)
  return calibrate.hessians(x.task, plain.variables, batches, x.layout)


def _zeros(x: Experiment) -> dict[str, jax.Array]:
  return {k: jnp.zeros(v.shape, v.dtype) for k, v in x.data.abstract.items()}


def _rule(words: Mapping[str, Any]) -> Rule:
  try:
    return Rule(words['sparsity'], words['pattern'], words['scope'], words['targets'])
  except InputError as error:
    raise InputError(f'compress: {error}') from None


def _prune(plain: Plain) -> Compressed:
  """Prunes by magnitude."""
  params = oneshot.pruned(plain.variables['params'], _rule(plain.words), plain.experiment.layout)
  return Compressed({**plain.variables, 'params': params})


def _wanda(plain: Plain) -> Compressed:
  """Prunes by magnitude times the norm of the inputs."""
  rule, layout = _rule(plain.words), plain.experiment.layout
  params = oneshot.wanda(plain.variables['params'], rule, calibration(plain), layout)
  return Compressed({**plain.variables, 'params': params})


def _shrink(plain: Plain) -> Compressed:
  """Removes heads, neurons and channels without weights."""
  part, variables = shrink(plain.experiment.config['task'].get('model', {}), plain.variables)
  return Compressed(variables, model=part)


# compress.method -> function. 'nearest', 'magnitude' and 'shrink' need no data.
METHODS: dict[str, Callable[[Plain], Compressed]] = {
  **{name: _quantize(method) for name, method in methods.METHODS.items()},
  'magnitude': _prune,
  'wanda': _wanda,
  'shrink': _shrink,
}
