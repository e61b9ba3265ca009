"""The data of an experiment: training data, evaluations, and files to predict."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx import config as recipes
from bmx.core.data import Continuing, Described, Examples, Outlined, Stateful
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.core.types import ChecksRows, HostBatch, Task, facts_of
from bmx.data.batches import Batches, composer_of
from bmx.data.shapes import Shapes
from bmx.data.transforms import Reorder
from bmx.ops.ring import zigzag as ring_order
from bmx.parallel import Layout
from bmx.runtime.storage import place
from bmx.train import datafile
from bmx.train.datafile import DataFile, tokenizer_of

NAMED_COLUMNS = ('.jsonl', '.json', '.ndjson', '.parquet', '.pq')  # tables that name their columns
TOKENIZER = 'bmx.data.text.tokenizer:Subwords'
ARRAYS = 'bmx.data.arrays:arrays'
IMAGES = 'bmx.data.images.folder:images'
ANNOTATED = 'bmx.data.images.coco:coco'
CAPTIONS = 'bmx.data.images.captions:captions'
UNCAPTIONED = 'bmx.data.images.captions:uncaptioned'
SPEECH = 'bmx.data.audio.speech:speech'
SOUNDS = 'bmx.data.audio.single:recorded'
EXAMPLE = re.compile(r'\bexample (\d+)')
# Arrays of a batch that predictions do not need, or that are made of the others.
LABELS = (
  'label', 'y', 'weights', 'targets', 'positions', 'first', 'last', 'next', 'frame', 'boxes',
  'box_label', 'box_weights', 'box_crowd', 'box_area', 'mask', 'mask_weights', 'item', 'log_q',
  'caption', 'transcript', 'transcript_length',
  'client', 'client_examples',
)  # fmt: skip
BESIDE = ('targets',)  # words of a data part that name a file beside `path`, which is the run's own
OPTIONAL_LABELS = ('frame', 'box_crowd', 'box_area', 'mask_weights')


def inherited(c: Mapping[str, Any]) -> DataFile | None:
  """What the run that the word `fitted` names keeps of its data; None without one.

  Raises InputError if it keeps nothing.
  """
  if not c['fitted']:
    return None
  found = datafile.read(place(c['fitted']))
  if found is None:
    raise InputError(f'fitted={c["fitted"]}: expected the directory of a run that has trained')
  return found


def train_data(
  c: Mapping[str, Any],
  layout: Layout,
  *,
  read: bool,
  stored: DataFile | None,
  known: DataFile | None = None,
  given: Any = None,
) -> Batches:
  """The training data, of a file or `given`; shapes only if not read or `stored` by a run.

  They are encoded as those of the run that `known` describes, if there is one.
  """
  if stored is not None:
    examples: Examples = Shapes(stored.spec, stored.metadata, stored.size, stored.state)
  else:
    part = c['data'] if read else _unread(c['data'])
    if own := tokenizer_part(known):
      part = with_tokenizer(part, own)
    fitted = {'fitted': known.state} if known is not None else {}
    examples = recipes.build(
      part, 'data', seed=c['seed'], train=True, read=read, **fitted, **_given(c, given)
    )
  length = examples.spec['tokens'].shape[0] if 'tokens' in examples.spec else 0
  if length and layout.mesh.shape['seq'] > 1 and 'positions' not in _stored_names(stored):
    examples = Reorder(examples, ring_order(length, layout.mesh.shape['seq']))
  return _batches(c, examples, c['data'], 'data', layout, train=True)


def _given(c: Mapping[str, Any], given: Any) -> dict[str, Any]:
  """Injects data in memory: word -> value. Raises InputError if the part takes none."""
  if given is None:
    return {}
  path = c['data'].get('call', '')
  if 'given' not in recipes.parameters(recipes.resolve(path), path):
    raise InputError(
      f'data.call={path}: expected a part that takes data from memory, such as '
      'bmx.data.tables:table or bmx.data.arrays:arrays'
    )
  return {'given': given}


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
  given: Any = None,
) -> Eval:
  """The entry `name` of `eval`: it inherits `data` unless it has a call of its own."""
  where, entry = f'eval.{name}', dict(c['eval'][name])
  functions = {p.partition(':')[2]: (p, recipes.resolve(p)) for p in entry.pop('metrics', ())}
  part = entry if 'call' in entry else {**c['data'], **entry}
  data = _read(c, part, where, layout, fitted, stored, **_given(c, given))
  return Eval(data, {k: _metric(p, fn, data) for k, (p, fn) in functions.items()})


def _metric(path: str, fn: Any, data: Batches) -> Any:
  """A function of predictions alone: some metrics read the data too."""
  return functools.partial(fn, data=data) if 'data' in recipes.parameters(fn, path) else fn


def input_data(experiment: Experiment, source: Any, stored: DataFile | None = None) -> Batches:
  """The data to predict.

  Args:
    experiment: whose data part reads them.
    source: a file of the kind that the recipe trains on, a numpy archive (.npz), of images a
      folder, a table of files or a file; or data in memory: what the parameter `given` of the data
      part takes, or a mapping of name to array.
    stored: data.json of the run.

  Raises:
    InputError: examples are not of the shape that the model was trained on.
  """
  c, layout = experiment.config, experiment.layout
  path = os.fspath(source) if isinstance(source, str | os.PathLike) else ''
  memory = {} if path else {'given': source}
  fitted = fitted_of(experiment.data.examples)
  chosen = c['predict']['labels']  # texts to choose from instead of those of the data
  part = _input_part(c['data'], path, fitted, bool(chosen))
  data = _read(c, part, '--input', layout, fitted, stored, **memory)
  given, expected = tokenizer_of(data), tokenizer_of(experiment.data)
  if given is not None and expected is not None and given != expected:
    raise InputError(
      f'--input={path}: expected text that the tokenizer of the run cuts; {part["call"]} made '
      'another one'
    )
  for key, spec in experiment.data.spec.items():
    if key in LABELS or (chosen and key == 'tokens'):
      continue
    if key not in data.spec or data.spec[key].shape != spec.shape:
      given = data.spec[key].shape if key in data.spec else 'missing'
      fix = ''
      if key == 'tokens' and 'image' in data.spec:
        fix = "; name texts to choose from with --predict.labels=\"('a cat','a dog')\""
      raise InputError(
        f'{path or "the given data"}: {key} is {given}, expected examples of shape {spec.shape}'
        f'{fix}'
      )
  return data


def _input_part(
  data: Mapping[str, Any], path: str, fitted: Mapping[str, Any], labeled: bool
) -> dict[str, Any]:
  """The data part that reads a file to predict, or data in memory where `path` is ''.

  Words that describe a CSV file are left out for another one. `labeled`: the command has texts for
  the images, which need no captions.
  """
  data = source_part(data)
  known = recipes.parameters(recipes.resolve(data['call']), data['call'])
  written = 'target' in fitted and 'pixels' in fitted  # captions that a decoder writes
  if path and written and not path.lower().endswith((*NAMED_COLUMNS, '.csv', '.tsv', '.npz')):
    return {'call': UNCAPTIONED, 'path': path}
  if path and data['call'] == CAPTIONS and not labeled and not path.endswith('.npz'):
    return {**data, 'path': path, 'images': '', 'split': 'all'}
  if path and 'pixels' in fitted and not path.endswith('.npz'):
    words = data if data['call'] == IMAGES else {'call': IMAGES}
    return {**words, 'path': path, 'split': 'all', 'unreadable': 'skip'}
  if path and 'whole' in fitted and not path.endswith('.npz'):
    words = data if data['call'] == ANNOTATED else {'call': ANNOTATED, 'kind': fitted['kind']}
    return {**words, 'path': path, 'images': '', 'split': 'all', 'unreadable': 'skip'}
  if path and 'sounds' in fitted and not path.endswith('.npz'):
    return {'call': SOUNDS, 'path': path}
  if path and 'audio' in fitted and not path.endswith('.npz'):
    words = data if data['call'] == SPEECH else {'call': SPEECH}
    return {**words, 'path': path, 'split': 'all', 'unreadable': 'skip'}
  data = {k: v for k, v in data.items() if k not in BESIDE}
  if path.lower().endswith(NAMED_COLUMNS):
    data = {k: v for k, v in data.items() if k not in ('columns', 'delimiter')}
  archive = path.endswith('.npz') and data['call'] != ARRAYS
  if archive or ('path' if path else 'given') not in known:
    return {'call': ARRAYS, 'path': path}
  return {**data, 'path': path, **({'split': 'all'} if 'split' in known else {})}


def source_part(data: Mapping[str, Any]) -> Mapping[str, Any]:
  """A data part, or of a mixture a source that reads files: all have one meaning.

  Of clients it is the part that holds their examples.
  """
  if isinstance(data.get('examples'), Mapping):
    return source_part(data['examples'])
  sources = data.get('sources', {}).values()
  return next((part for part in sources if 'path' in part), data)


def checked(data: Any, task: Task) -> Any:
  """Batches whose rows the task examines on the host, if it declares that it does."""
  if not isinstance(task, ChecksRows):
    return data

  def check(rows: HostBatch, numbers: np.ndarray) -> None:
    try:
      task.check_rows(rows, numbers)
    except InputError as error:
      raise InputError(_with_file(str(error), data.examples)) from None

  if isinstance(data.examples, Outlined):
    check(data.examples.outline(), np.arange(data.size))
  return dataclasses.replace(data, check=check)


def _with_file(message: str, examples: Examples) -> str:
  """Adds the file of the example whose number a message has, where the examples name files."""
  found = EXAMPLE.search(message)
  if found is None or not isinstance(examples, Described):
    return message
  file = examples.describe(np.array([int(found[1])]))[0].get('file')
  return message if file is None else message.replace(found[0], f'{found[0]} ({file})', 1)


def check_tokenizers(data: Batches, evals: Mapping[str, Eval]) -> None:
  """Raises InputError naming an `eval` entry whose text another tokenizer cuts.

  The tokenizer of ids of a file (`windows:tokens`) is not known; their vocabulary must be of the
  same size.
  """
  own = tokenizer_of(data)
  for name, entry in evals.items():
    other = tokenizer_of(entry.data)
    sizes = [d.metadata.get('vocab_size') for d in (data, entry.data)]
    same = sizes[0] == sizes[1] if own is None or other is None else own == other
    if not same:
      raise InputError(
        f'eval.{name}: expected the tokenizer of the training data ({sizes[0]} ids), found another '
        f'one ({sizes[1]} ids); set --config.eval.{name}.tokenizer.path, or leave its tokenizer out'
      )


def check_carried(task: Task, data: Batches) -> None:
  """Raises InputError if a model carries state between batches that do not continue each other."""
  composer = composer_of(data.examples)
  follows = isinstance(composer, Continuing) and composer.contiguous
  if facts_of(task.model).carried and not follows:
    raise InputError(
      'task.model.carry=True: expected training data whose rows continue those of the batch '
      'before; set --config.data.contiguous=True (bmx.data.text.windows), or '
      '--config.task.model.carry=False'
    )


def check_labels(task: Task, evals: Mapping[str, Eval]) -> None:
  """Raises InputError naming an `eval` entry that lacks labels: only `predict` can use it."""
  for name, entry in evals.items():
    wanted = [k for k in task.labels_for_metrics if k not in OPTIONAL_LABELS]
    missing = [k for k in wanted if k not in entry.data.spec]
    if missing:
      source = entry.data.metadata.get('source', 'its data')
      raise InputError(
        f'eval.{name}: expected examples with {", ".join(missing)}; {source} has none (a hidden '
        f'test set). Remove the entry, and use --mode=predict for its file'
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
  **memory: Any,
) -> Batches:
  if own := tokenizer_part(stored):
    part = with_tokenizer(part, own)
  injected = memory | ({'fitted': fitted} if fitted else {})
  own = {k: v for k, v in part.items() if k != 'batch_size'}
  examples = recipes.build(own, where, seed=c['seed'], train=False, read=True, **injected)
  return _batches(c, examples, part, where, layout, train=False)


def tokenizer_part(stored: DataFile | None) -> dict[str, Any]:
  """The tokenizer that a run keeps, as a part; {} without one."""
  if stored is None or not stored.state.get('tokenizer'):
    return {}
  own = {'text': stored.state['tokenizer'], 'names': stored.state.get('special_tokens')}
  return own | {'call': TOKENIZER, 'source': 'the tokenizer in data.json'}


def with_tokenizer(part: Mapping[str, Any], own: Any) -> dict[str, Any]:
  """A data part whose tokenizers, those of parts inside it too, are `own`: a part or a value."""
  found = {k: with_tokenizer(v, own) for k, v in part.items() if isinstance(v, Mapping)}
  return {**part, **found} | ({'tokenizer': own} if 'tokenizer' in found else {})


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
