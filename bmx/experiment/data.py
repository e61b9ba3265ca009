"""The data of an experiment: training data, evaluations, and files to predict."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from bmx import config as recipes
from bmx.core.data import Examples, Stateful
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.core.types import ChecksRows, Task
from bmx.data.batches import Batches
from bmx.data.shapes import Shapes
from bmx.data.transforms import Reorder
from bmx.ops.ring import zigzag as ring_order
from bmx.parallel import Layout
from bmx.train.datafile import DataFile, tokenizer_of

TOKENIZER = 'bmx.data.text.tokenizer:load'


def train_data(
  c: Mapping[str, Any], layout: Layout, *, read: bool, stored: DataFile | None
) -> Batches:
  """The training data; shapes only if they are not read or `stored` by a run."""
  if stored is not None:
    examples: Examples = Shapes(stored.spec, stored.metadata, stored.size, stored.state)
  else:
    part = c['data'] if read else _unread(c['data'])
    examples = recipes.build(part, 'data', seed=c['seed'], train=True, read=read)
  length = examples.spec['tokens'].shape[0] if 'tokens' in examples.spec else 0
  if length and layout.mesh.shape['seq'] > 1 and 'positions' not in _stored_names(stored):
    examples = Reorder(examples, ring_order(length, layout.mesh.shape['seq']))
  return _batches(c, examples, c['data'], 'data', layout, train=True)


def _stored_names(stored: DataFile | None) -> tuple[str, ...]:
  return tuple(stored.spec) if stored is not None else ()


def _unread(part: Any) -> Any:
  """A data part without the parts inside it that reading would need (a tokenizer)."""
  if not isinstance(part, Mapping):
    return part
  if 'call' not in part:
    return {k: _unread(v) for k, v in part.items()}
  able = 'read' in recipes.parameters(recipes.resolve(part['call']), part['call'])
  is_part = lambda v: isinstance(v, Mapping) and 'call' in v
  return {k: None if able and is_part(v) else _unread(v) for k, v in part.items()}


def evaluation(
  c: Mapping[str, Any],
  name: str,
  layout: Layout,
  fitted: Mapping[str, Any],
  stored: DataFile | None = None,
) -> Eval:
  """The entry `name` of `eval`: it inherits `data` unless it has a call of its own."""
  where, entry = f'eval.{name}', dict(c['eval'][name])
  functions = {p.partition(':')[2]: (p, recipes.resolve(p)) for p in entry.pop('metrics', ())}
  part = entry if 'call' in entry else {**c['data'], **entry}
  data = _read(c, part, where, layout, fitted, stored)
  return Eval(data, {k: _metric(p, fn, data) for k, (p, fn) in functions.items()})


def _metric(path: str, fn: Any, data: Batches) -> Any:
  """A function of predictions alone: some metrics read the data too."""
  return functools.partial(fn, data=data) if 'data' in recipes.parameters(fn, path) else fn


def input_data(experiment: Experiment, path: str, stored: DataFile | None = None) -> Batches:
  """The data to predict: a file of the kind that the recipe trains on, or a numpy archive (.npz).

  Raises InputError if its examples are not of the shape that the model was trained on.
  """
  c, layout = experiment.config, experiment.layout
  part = dict(c['data'])
  known = recipes.parameters(recipes.resolve(part['call']), part['call'])
  if path.endswith('.npz') or 'path' not in known:
    part = {'call': 'bmx.data.arrays:arrays', 'path': path}
  else:
    part |= {'path': path} | ({'split': 'all'} if 'split' in known else {})
  data = _read(c, part, '--input', layout, fitted_of(experiment.data.examples), stored)
  labels = ('label', 'y', 'weights', 'targets', 'positions', 'first', 'last', 'next')
  for key, spec in experiment.data.spec.items():
    if key in labels:
      continue
    if key not in data.spec or data.spec[key].shape != spec.shape:
      given = data.spec[key].shape if key in data.spec else 'missing'
      raise InputError(f'{path}: {key} is {given}, expected examples of shape {spec.shape}')
  return data


def checked(data: Any, task: Task) -> Any:
  """Batches whose rows the task examines on the host, if it declares that it does."""
  if not isinstance(task, ChecksRows):
    return data
  return dataclasses.replace(data, check=task.check_rows)


def check_tokenizers(data: Batches, evals: Mapping[str, Eval]) -> None:
  """Raises InputError naming an `eval` entry whose text another tokenizer cuts.

  Ids of a file (`windows:tokens`) have no tokenizer; their vocabulary must be of the same size.
  """
  own = tokenizer_of(data)
  for name, entry in evals.items():
    other, sizes = (
      tokenizer_of(entry.data),
      [d.metadata.get('vocab_size') for d in (data, entry.data)],
    )
    if own and other != own and (other or sizes[0] != sizes[1]):
      raise InputError(
        f'eval.{name}: expected the tokenizer of the training data ({sizes[0]} ids), found another '
        f'one ({sizes[1]} ids); set --config.eval.{name}.tokenizer.path, or leave its tokenizer out'
      )


def fitted_of(examples: Examples) -> dict[str, Any]:
  """Everything that was fitted to examples; {} if nothing was."""
  return examples.state() if isinstance(examples, Stateful) else {}


def _read(
  c: Mapping[str, Any],
  part: Mapping[str, Any],
  where: str,
  layout: Layout,
  fitted: Mapping[str, Any],
  stored: DataFile | None,
) -> Batches:
  if stored is not None and stored.tokenizer:
    part = _with_tokenizer(part, stored.tokenizer)
  given = {'fitted': fitted} if fitted else {}
  own = {k: v for k, v in part.items() if k != 'batch_size'}
  examples = recipes.build(own, where, seed=c['seed'], train=False, read=True, **given)
  return _batches(c, examples, part, where, layout, train=False)


def _with_tokenizer(part: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """A data part whose tokenizer is the one that the run keeps."""
  own = {'call': TOKENIZER, 'path': str(folder)}
  return {k: own if k == 'tokenizer' and isinstance(v, Mapping) else v for k, v in part.items()}


def _batches(
  c: Mapping[str, Any],
  examples: Examples,
  part: Mapping[str, Any],
  where: str,
  layout: Layout,
  train: bool,
) -> Batches:
  size = part.get('batch_size', c['batch_size'])
  shards = math.prod(layout.mesh.shape[a] for a in layout.rules['batch'])
  if size < 1 or size % shards:
    raise InputError(
      f'{where}: batch_size={size}: expected a multiple of {shards}, the parts that the mesh '
      f'splits a batch into ({", ".join(layout.rules["batch"])}); change --config.batch_size or '
      '--config.mesh'
    )
  data = Batches(examples, size, c['seed'], train)
  layout.batch(data.spec, size)
  return data
