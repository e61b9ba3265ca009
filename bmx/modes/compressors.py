"""Methods of mode `compress`: a run's plain weights -> those of a smaller run."""

import dataclasses
import logging
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from bmx import config as recipes
from bmx.compress import calibrate, methods, oneshot
from bmx.compress.quantize import Quantized, Scheme
from bmx.compress.rule import Rule
from bmx.compress.shrink import shrink
from bmx.core.errors import InputError, did_you_mean
from bmx.core.experiment import Experiment
from bmx.core.types import Variables
from bmx.models import kernels
from bmx.ops import stored
from bmx.train.state import plan_state

log = logging.getLogger('bmx')


class Plain(NamedTuple):
  """A run without wrappers, whose weights a method compresses.

  Attributes:
    experiment: of the innermost task.
    variables: its plain weights and its other collections.
    words: 'method' and the config words `compress` that it reads.
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
    nearest: paths of weights that a calibrated method rounded to the nearest codes, as no second
      moments of their inputs are known: tables, convolutions, experts.
  """

  variables: Variables
  wrapper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  nearest: Sequence[str] = ()


def _quantize(method: methods.Method) -> Callable[[Plain], Compressed]:
  """Returns the quantization of a run by a way to round kernels."""

  def quantize(plain: Plain) -> Compressed:
    x, words = plain.experiment, plain.words
    scheme = Scheme(**{word: words[word] for word in SCHEME})
    task = Quantized(x.task, **dataclasses.asdict(scheme))
    with kernels.recorded() as found:  # raises here, before calibration, where a group does not fit
      plan_state(task, optax.identity(), x.data.abstract, x.layout)
    chosen = scheme.chosen(found)
    hessians = calibration(plain) if method.calibrated else {}
    if method.calibrated:
      _check_seen(found.keys() & {path.removesuffix('/kernel') for path in chosen}, hessians, words)
    made = methods.quantize(plain.variables['params'], chosen, scheme, method, hessians, x.layout)
    wrapper = {'call': 'bmx.compress.quantize:Quantized', **dataclasses.asdict(scheme)}
    wrapper |= {'input_scales': True} if method.input_scales else {}
    nearest = [k for k in chosen if method.calibrated and k.removesuffix('/kernel') not in hessians]
    if nearest:
      log.warning('%s rounds to the nearest, without calibration: %s', words['method'],
                  ', '.join(nearest))  # fmt: skip
    return Compressed({**plain.variables, **made}, wrapper, nearest=nearest)

  return quantize


def _check_seen(paths: Iterable[str], seen: Container[str], words: Mapping[str, Any]) -> None:
  """Raises InputError for a dense layer to quantize whose inputs calibration did not see."""
  for path in sorted(paths):
    if path not in seen:
      raise InputError(
        f'method={words["method"]}: expected the inputs of {path}, which calibration does not see; '
        'name other kernels with targets=REGEX, or set method=nearest'
      )


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


def _rule(words: Mapping[str, Any]) -> Rule:
  return Rule(**{name: words[word] for name, word in RULE.items()})


def _prune(plain: Plain) -> Compressed:
  """Prunes by magnitude."""
  params = oneshot.pruned(plain.variables['params'], _rule(plain.words), plain.experiment.layout)
  return Compressed({**plain.variables, 'params': params})


def _wanda(plain: Plain) -> Compressed:
  """Prunes by magnitude times the norm of the inputs."""
  rule, params = _rule(plain.words), plain.variables['params']
  oneshot.wanda_names(params, rule)  # raises here, before calibration
  params = oneshot.wanda(params, rule, calibration(plain), plain.experiment.layout)
  return Compressed({**plain.variables, 'params': params})


def _shrink(plain: Plain) -> Compressed:
  """Removes heads, neurons and channels without weights."""
  part, variables = shrink(plain.experiment.config['task'].get('model', {}), plain.variables)
  return Compressed(variables, model=part)


class Compressor(NamedTuple):
  """A method of mode `compress`.

  Attributes:
    run: what it does.
    words: name of a value in the messages of what it calls -> the config word `compress` that
      gives it: all words that it reads, but 'method'.
  """

  run: Callable[[Plain], Compressed]
  words: Mapping[str, str]


SCHEME = {f.name: f.name for f in dataclasses.fields(Scheme)}
RULE = {'sparsity': 'sparsity', 'kind': 'pattern', 'scope': 'scope', 'targets': 'targets'}
EXAMPLES = {'examples': 'examples'}

# compress.method -> what it does. 'nearest', 'magnitude' and 'shrink' need no data.
METHODS = {
  **{
    name: Compressor(_quantize(method), SCHEME | EXAMPLES if method.calibrated else SCHEME)
    for name, method in methods.METHODS.items()
  },
  'magnitude': Compressor(_prune, RULE),
  'wanda': Compressor(_wanda, RULE | EXAMPLES),
  'shrink': Compressor(_shrink, {}),
}


def checked(words: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
  """Returns 'method' and the config words `compress` that it reads.

  Args:
    words: of the config.
    trained: the words of the rounding that the run was trained with; {} for none. They are the
      defaults of a method that quantizes.

  Raises:
    InputError: an unknown method, a word that it does not read, or other words than in training.
  """
  name, defaults = words['method'], recipes.plain(recipes.base())['compress']
  if name not in METHODS:
    near = did_you_mean(name, METHODS)
    raise InputError(f'compress.method={name!r}: expected one of {", ".join(METHODS)}{near}')
  read = METHODS[name].words
  given = {k: v for k, v in words.items() if k != 'method' and v != defaults[k]}
  for word, value in given.items():
    if word not in read.values():
      others = ' or '.join(k for k, other in METHODS.items() if word in other.words.values())
      raise InputError(
        f'compress.{word}={value!r}: expected {defaults[word]!r} with compress.method={name}, '
        f'which does not read it; leave it out, or set compress.method={others}, each method in a '
        'command of its own'
      )
  own = dict(trained) if SCHEME.items() <= read.items() else {}
  for word in own.keys() & given.keys():
    if given[word] != own[word]:
      raise InputError(
        f'compress.{word}={given[word]!r}: expected {own[word]!r}, the rounding that the run was '
        'trained with; leave the word out'
      )
  result = {'method': name, **{word: words[word] for word in read.values()}, **own}
  if 'group' in given and result.get('kind') in stored.WHOLE:
    raise InputError(
      f'compress.group={given["group"]}: expected compress.kind=int4 or nf4 with it, as '
      f'{result["kind"]} has a scale for each output'
    )
  return result


def compressed(plain: Plain) -> Compressed:
  """Applies the method of the words; its errors name words as the config has them."""
  method = METHODS[plain.words['method']]
  words = {**method.words, 'method': 'method'}
  try:
    return method.run(plain)
  except InputError as error:
    names = rf'(?<![\w.])({"|".join(words)})='
    raise InputError(re.sub(names, lambda m: f'compress.{words[m[1]]}=', str(error))) from None
