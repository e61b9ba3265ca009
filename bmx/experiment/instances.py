"""Instances of requests: read as `input_data` reads a file of them, with the columns of a run."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from bmx import config as recipes
from bmx.core.data import Data, Spec
from bmx.core.errors import InputError, did_you_mean, near
from bmx.core.experiment import Experiment
from bmx.data.arrays import arrays as array_part
from bmx.data.images.pictures import Pixels
from bmx.data.recommend.categories import FieldEncoder
from bmx.data.recommend.clicks import clicks, criteo
from bmx.data.recommend.ratings import ratings
from bmx.data.tables import table
from bmx.data.text.squad import squad
from bmx.data.text.text_classification import text_classification
from bmx.data.text.token_classification import token_classification
from bmx.experiment.arrays import array, decoded
from bmx.experiment.data import LABELS, input_data, source_part, tokenizer_part, with_tokenizer
from bmx.train.datafile import DataFile

Kind = Literal['number', 'date', 'category', 'text', 'words', 'array', 'other']
LISTS = ('words', 'tags', 'answers')  # columns of lists
FRAME = 'frame'  # scale of the rows and columns of an image, and size of its original
MAX_WHOLE = 10**300  # no float holds much more
WHERE = re.compile(r'^the given \w+, (?:record|question) (\d+)')  # in messages of data parts


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the instances of a run.

  Attributes:
    name: key of an instance.
    kind: of its values; 'other' is not an input (the target, columns that were left out).
    required: whether each instance must have it.
    values: of a category, those of the training data.
    typical: of a number or date, the mean of the training data; 0 otherwise.
    shape: of an array.
    pixels: how files become the images of the run; None where they do not.
    whole: whether an image is fitted into the shape as a whole, with a `frame`, not cropped.
  """

  name: str
  kind: Kind
  required: bool = True
  values: tuple[str, ...] = ()
  typical: float = 0.0
  shape: tuple[int, ...] = ()
  pixels: Pixels | None = None
  whole: bool = False


class Instances:
  """Reads instances, JSON objects of column to value, into the batches that a run predicts.

  Args:
    experiment: of the run.
    stored: data.json of the run.

  Raises:
    InputError: the data part of the run reads no single instances.
  """

  def __init__(self, experiment: Experiment, stored: DataFile):
    part = source_part(experiment.config['data'])
    self.columns = columns_of(part, experiment.data.spec, stored.state)
    self.spec = {k: v for k, v in experiment.data.spec.items() if k not in LABELS or k == 'weights'}
    if 'image' in self.spec and 'tokens' in self.spec:  # of captions, which requests do not have
      if not experiment.config['predict']['labels']:
        raise InputError('predict.labels=(): expected the texts that a served model of images and '
                         "captions chooses from, such as ('a cat', 'a dog')")  # fmt: skip
      del self.spec['tokens']
    if any(c.whole for c in self.columns):
      self.spec[FRAME] = Spec((4,), np.dtype(np.float32))
    if 'most_seen' in stored.state:  # of ratings: training does not read what a user has seen
      most = int(stored.state['most_seen'])
      self.spec['seen'] = Spec((most,), np.dtype(np.int32))
    if own := tokenizer_part(stored):  # built once, not for each request
      data = with_tokenizer(experiment.config['data'], recipes.build(own, 'tokenizer'))
      experiment = dataclasses.replace(experiment, config={**experiment.config, 'data': data})
    self._experiment = experiment
    texts = [c.name for c in self.columns if c.kind == 'text']
    self._alias = texts[0] if len(texts) == 1 and len(self.columns) <= 2 else ''

  def __call__(self, instances: Sequence[Any]) -> Data:
    """Returns the instances as one batch, not padded.

    Raises InputError naming the first instance that cannot be read, as `instances[3]: ...`.
    """
    found = [self._checked(n, instance) for n, instance in enumerate(instances)]
    try:
      return self._read(found)
    except InputError as error:
      named = WHERE.sub(lambda m: f'instances[{int(m[1]) - 1}]', str(error))
      if not WHERE.match(str(error)):
        named = self._found(found) or f'instances: {error}'
      raise InputError(named) from None

  def _found(self, instances: Sequence[Mapping[str, Any]]) -> str:
    """Returns the error of the first instance that cannot be read alone; '' without one."""
    for n, instance in enumerate(instances):
      try:
        self._read([instance])
      except InputError as error:
        return f'instances[{n}]: {error}'
    return ''

  def _read(self, instances: Sequence[Mapping[str, Any]]) -> Data:
    data = input_data(self._experiment, self._given(instances))
    return dataclasses.replace(data, batch_size=data.size)

  def _given(self, instances: Sequence[Mapping[str, Any]]) -> Any:
    """What the data part takes from memory: arrays by name, or a list of records."""
    arrays = [c for c in self.columns if c.kind == 'array']
    if not arrays:
      return list(instances)
    return {name: np.stack([instance[name] for instance in instances]) for name in instances[0]}

  def _checked(self, number: int, instance: Any) -> Mapping[str, Any]:
    """Returns an instance after checks that do not depend on how a column is read."""
    where = f'instances[{number}]'
    if isinstance(instance, str) and self._alias:
      instance = {self._alias: instance}
    if not isinstance(instance, Mapping):
      raise InputError(f'{where}: expected an object of column to value, not a '
                       f'{type(instance).__name__}')  # fmt: skip
    known = {c.name: c for c in self.columns}
    if self._alias and 'text' in instance and 'text' not in known:
      if self._alias in instance:
        raise InputError(f'{where}: {self._alias!r} and text name one column; expected one of '
                         'them')  # fmt: skip
      instance = {(self._alias if k == 'text' else k): v for k, v in instance.items()}
    for name in instance:
      if name not in known:
        raise InputError(f'{where}: unknown column {name!r:.60}{did_you_mean(name, known)}')
    for column in self.columns:
      if column.required and column.name not in instance:
        extra = near(column.name, instance)
        null = '; null is a missing value' if column.kind in ('number', 'date', 'category') else ''
        raise InputError(f'{where}: missing column {column.name!r}{extra or null}')
    found = {k: _value(f'{where}.{k}', v, known[k]) for k, v in instance.items()}
    for column in self.columns:
      if column.whole:
        found[column.name], found[FRAME] = found[column.name]
    return found


# What a value of a column is, for messages.
EXPECTED: dict[Kind, str] = {
  'number': 'a finite number, or null where it is missing',
  'date': 'a date such as 2024-05-31, or null where it is missing',
  'category': 'a text, or null where it is missing',
  'text': 'a text',
  'words': 'a list of words',
  'array': 'finite numbers',
  'other': 'a text, a finite number or null',
}


def _value(where: str, value: Any, column: Column) -> Any:
  """Returns a value, an array as float32, and of a whole image (array, its frame).

  Raises InputError for a value of a wrong type, or NaN.
  """
  if column.kind == 'array' and column.pixels is not None and isinstance(value, str):
    return decoded(where, value, column.pixels, column.whole)
  if column.kind == 'array':
    found = array(where, value, column.shape)
    frame = np.array([1, 1, *column.shape[:2]], np.float32)  # it is its own original
    return (found, frame) if column.whole else found
  whole = not isinstance(value, float) or math.isfinite(value)
  nested = isinstance(value, Mapping) or (isinstance(value, list) and column.name not in LISTS)
  huge = isinstance(value, int) and abs(value) > MAX_WHOLE
  if not whole or nested or huge:
    raise InputError(f'{where}={value!r:.60}: expected {EXPECTED[column.kind]}')
  return value


def columns_of(
  part: Mapping[str, Any], spec: Mapping[str, Spec], state: Mapping[str, Any]
) -> tuple[Column, ...]:
  """Returns the columns of the instances that a run predicts.

  Args:
    part: the data part of the run.
    spec: arrays of one example.
    state: everything fitted to the training data.

  Raises:
    InputError: the data part reads no single instances.
  """
  readers: dict[Any, Callable[..., tuple[Column, ...]]] = {
    table: _table,
    clicks: _clicks,
    criteo: _clicks,
    ratings: lambda part, state: (Column(part.get('user', 'userId'), 'category'),),
    text_classification: _texts,
    token_classification: lambda part, state: (Column('words', 'words'), _other('tags')),
    squad: lambda part, state: (Column('question', 'text'), Column('context', 'text'),
                                *map(_other, ('id', 'answers', 'is_impossible'))),
  }  # fmt: skip
  reader = readers.get(recipes.resolve(part['call']))
  if reader is not None:
    return reader(part, state)
  arrays = [k for k in ('image', 'x') if k in spec]
  if not arrays:
    raise InputError(
      f'data.call={part["call"]}: expected a part whose examples are single instances (a table, '
      'texts with classes or tags, questions, images); a model of its data has nothing to predict '
      'for one'
    )
  whole = 'whole' in state  # of annotated images
  kept = state.get('whole') or state.get('pixels')
  pixels = Pixels.restore(kept) if kept else None
  if pixels is not None and recipes.resolve(part['call']) is array_part:
    pixels = dataclasses.replace(pixels, mean=(0.0,), std=(1 / 255,))  # which the part normalizes
  return tuple(
    Column(k, 'array', shape=tuple(spec[k].shape), pixels=pixels, whole=whole) for k in arrays
  )


def _other(name: str) -> Column:
  return Column(name, 'other', required=False)


def _table(part: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Column, ...]:
  encoder = state['encoder']
  found = _numbers(encoder)
  found += [Column(k, 'category', values=tuple(v)) for k, v in encoder['categories'].items()]
  names = [*encoder['dropped'], part['target'], part.get('weights', '')]
  return (*found, *(_other(k) for k in names if k))


def _numbers(encoder: Mapping[str, Any]) -> list[Column]:
  found = [Column(k, 'number', typical=float(v[0])) for k, v in encoder['numeric'].items()]
  return found + [Column(k, 'date', typical=float(v[0])) for k, v in encoder['dates'].items()]


def _clicks(part: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Column, ...]:
  fields = FieldEncoder.restore(state['fields'])
  found = _numbers(state['fields']['numbers'])
  found += [Column(k, 'category', values=tuple(fields.listed.get(k, ()))) for k in fields.columns]
  names = [*fields.numbers.dropped, str(state['target']), part.get('weights', '')]
  return (*found, *(_other(k) for k in names if k and k not in fields.columns))


def _texts(part: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Column, ...]:
  names = [part[k] for k in ('text', 'pair') if part.get(k)]
  return (*(Column(k, 'text') for k in names), _other(part['label']))
