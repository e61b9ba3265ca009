"""Mode `explain`: why the model of a run predicts what it predicts, as a page."""

import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bmx.config.words import WORDS
from bmx.core import errors
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch
from bmx.data.encoder import TabularEncoder
from bmx.data.recommend.categories import UNKNOWN, FieldEncoder
from bmx.interpret import fields, methods, pictures
from bmx.interpret.dense import is_dense, place_of
from bmx.interpret.features import Features, features_of
from bmx.interpret.methods import Explanation, Options
from bmx.interpret.subject import input_key
from bmx.modes import Request, whole
from bmx.modes.opened import Opened, label_of, open_examples, target_of, titles
from bmx.modes.reports import add_sections, checked_page, own_page
from bmx.modes.start import need_run
from bmx.runtime.files import replacing
from bmx.runtime.report import Section
from bmx.tasks.common import innermost
from bmx.tasks.detection import Detection
from bmx.tasks.encoder import TokenClassification
from bmx.tasks.segmentation import Segmentation

log = logging.getLogger('bmx')
PLACES = {
  TokenClassification: 'of the token that is surest of it, the logit of',
  Segmentation: 'over the pixels of it, the mean logit of',
  Detection: 'of the best box, the log score of',
}
BACKGROUND = 32  # examples that features are replaced by
TEXT = 'the embedding 0'
REPLACING = 'shapley', 'integrated_gradients', 'occlusion'
OF_OUTPUTS = *REPLACING, 'saliency', 'smoothgrad', 'gradcam'
# Word -> the methods that read it.
READERS = {
  'count': (*OF_OUTPUTS, 'rollout', 'lens', 'influence'),
  'target': OF_OUTPUTS,
  'samples': ('shapley', 'smoothgrad'),
  'sample': ('permutation', 'probe', 'influence'),
  'background': REPLACING,
  'window': ('occlusion',),
  'layer': ('gradcam',),
}


def run(request: Request) -> int:
  """Writes --output, or WORKDIR/explain/INPUT.METHOD.html; with `explain.report` the report too."""
  need_run('explain', request)
  words = request.config.explain
  check_number('explain.count', words.count, at_least=1)
  check_number('explain.samples', words.samples, at_least=2)
  check_number('explain.sample', words.sample, at_least=2)
  check_number('explain.window', words.window, at_least=0)
  page = checked_page(request.output)
  opened = open_examples(request, training=words.method == 'influence')
  method, over_model = _chosen(opened, words.method)
  check_read(words, method, is_dense(opened.x.task))
  if over_model:
    (sections, notes), legend = whole.METHODS[method](opened, words), ''
  else:
    explained, sections, notes = attributions(opened, method, words)
    legend = pictures.legend(explained.signed)
  stem = pathlib.Path(request.input).stem or 'eval'
  page = page or own_page(opened.workdir / 'explain', f'{stem}.{method}')
  facts = {
    'run': str(opened.workdir), 'step': str(opened.step), 'method': method,
    'examples': opened.source, **notes, 'written': time.strftime('%Y-%m-%d %H:%M:%S'),
  }  # fmt: skip
  title = f'{method.replace("_", " ").capitalize()} of {opened.x.name}'
  wide = input_key(opened.data.spec) == 'tokens' or over_model
  with replacing(page) as file:
    file.write(pictures.page(title, legend, facts, sections, wide))
  if words.report:
    named = [Section(f'{title}: {s.title}', legend + s.html) for s in sections]
    add_sections(opened.workdir, opened.x.name, f'explain {method}', named)
  log.info('%s of %s, step %d: %s', method, opened.source, opened.step, page)
  return errors.DONE


def check_read(words: Any, method: str, dense: bool = False) -> None:
  """Raises InputError naming a word that is set, and that a method does not read.

  Args:
    words: `explain` of the config.
    method: the chosen one.
    dense: whether outputs have a place: that of a tag is where attention is followed from.
  """
  for word, readers in READERS.items():
    given = words[word]
    readers = (*readers, 'rollout') if word == 'target' and dense else readers
    if given != WORDS[f'explain.{word}'].default and method not in readers:
      raise InputError(
        f'explain.{word}={given}: {method} does not read it; expected a method of '
        f'{", ".join(readers)}'
      )


def _chosen(opened: Opened, name: str) -> tuple[str, bool]:
  """Returns the method that is named, and whether it is of the whole model."""
  batch = opened.placed(opened.first(1))
  known = methods.methods_of(opened.x.task, opened.variables, batch)
  over_model = whole.possible(opened, batch)
  method = methods.check_method(name, (*known, *over_model), opened.x.task.model)
  return method, method in over_model


def attributions(
  opened: Opened, method: str, words: Any
) -> tuple[Explanation, list[Section], dict[str, str]]:
  """Explains the first examples -> (attributions, a section for each, facts)."""
  x, rows = opened.x, opened.first(words.count)
  batch, outputs = opened.placed(rows), opened.outputs(rows)
  target = target_of(opened, rows, outputs, words.target)
  background, baseline = _background(opened, method, words)
  features = features_of(rows, opened.state, words.window)
  padded = target[np.minimum(np.arange(len(batch['weights'])), len(target) - 1)]
  options = Options(words.samples, words.layer, x.seed)
  found = methods.explain(
    method,
    x.task,
    x.layout,
    opened.variables,
    batch,
    jnp.asarray(padded),
    features,
    background,
    options,
  )
  found = found._replace(values=found.values[: len(target)])
  sections = _sections(opened, rows, outputs, target, features, found)
  notes = {'explained': _explained(opened, target, words.target), **found.notes}
  if method in REPLACING:
    notes['baseline'] = baseline
  return found, sections, notes


def _explained(opened: Opened, target: np.ndarray, name: str) -> str:
  task = innermost(opened.x.task)
  if is_dense(task):
    of = label_of(opened, place_of(target[0])[1]) if name else 'the predicted class'
    place = next(place for kind, place in PLACES.items() if isinstance(task, kind))
    return f'{place} {of}'
  return f'the output of {label_of(opened, int(target[0]))}' if name else 'the predicted output'


def _background(opened: Opened, method: str, words: Any) -> tuple[np.ndarray, str]:
  """Returns the inputs that features are replaced by, and their name for people."""
  key = input_key(opened.data.spec)
  if words.background and key not in ('x', 'ids'):
    raise InputError(f'explain.background={words.background}: expected none without a table')
  if key == 'tokens':
    return np.zeros((1, 1, 1), np.float32), TEXT
  if key == 'image':
    pixels = opened.sample(BACKGROUND)[key].astype(np.float32)
    color = pixels.mean((0, 1, 2), keepdims=True)
    return np.broadcast_to(color, (1, *pixels.shape[1:])), f'the mean color of {len(pixels)} images'
  source = opened.of(words.background) if words.background else opened
  rows = source.sample(BACKGROUND)
  values = (
    rows[key].astype(np.float32) if key == 'x' else np.asarray(fields.pack(rows['x'], rows[key]))
  )
  if len(values) < 2 and method in REPLACING:
    raise InputError(
      f'explain: {source.source} has one example, which cannot replace its own features; name a '
      'file of others with --background=FILE'
    )
  return values, f'{len(values)} examples of {source.source}'


def _sections(
  opened: Opened,
  rows: HostBatch,
  outputs: np.ndarray,
  target: np.ndarray,
  features: Features,
  found: Explanation,
) -> list[Section]:
  """Returns a section for each example, below one of the means over a table's examples."""
  key, names = input_key(rows), titles(opened, rows, outputs, target)
  if key == 'tokens':
    return [Section(t, _text(opened, rows, i, found)) for i, t in enumerate(names)]
  if key == 'image':
    pair = lambda i: pictures.heat_map(rows['image'][i], found.values[i])
    wrapped = '<div class="examples wide"><div>{}</div></div>'
    return [Section(t, wrapped.format(pair(i))) for i, t in enumerate(names)]
  mean = Section(
    f'Mean size over {len(names)} examples',
    pictures.bars(features.names, np.abs(found.values).mean(0)),
  )
  errors = [None] * len(names) if found.errors is None else list(found.errors)
  each = [
    Section(t, pictures.bars(_cells(opened, rows, i, features), found.values[i], errors[i]))
    for i, t in enumerate(names)
  ]
  return [mean, *each] if len(names) > 1 else each


def _text(opened: Opened, rows: HostBatch, i: int, found: Explanation) -> str:
  """The tokens of a text, without its padding."""
  ids = rows['tokens'][i]
  real = rows['segment_ids'][i] > 0 if 'segment_ids' in rows else np.ones(len(ids), bool)
  texts = pictures.pieces(opened.tokenizer, ids[real].tolist())
  return pictures.tokens(texts, found.values[i][real])


def _cells(opened: Opened, rows: HostBatch, i: int, features: Features) -> Sequence[str]:
  """The features of a row with their values, as the table has them."""
  row = rows['x'][i]
  if 'ids' in rows:
    return _columns(opened, row, rows['ids'][i], features)
  if 'encoder' not in opened.state:
    pairs = zip(features.names, row.ravel(), strict=True)
    return [f'{name} = {value:.4g}' for name, value in pairs]
  values = TabularEncoder.restore(opened.state['encoder']).decode(row)
  return [f'{name} = {values[name]}' for name in features.names]


def _columns(opened: Opened, x: np.ndarray, ids: np.ndarray, features: Features) -> Sequence[str]:
  """The columns of a click model with their values, numbers as the data have them."""
  if 'fields' not in opened.state:
    values = [*(f'{value:.4g}' for value in x), *map(str, ids)]
    return [f'{name} = {value}' for name, value in zip(features.names, values, strict=True)]
  encoder = FieldEncoder.restore(opened.state['fields'])
  numbers = encoder.numbers.decode(x) if len(x) else {}
  known = [*encoder.listed.values(), *[None] * len(encoder.hashed)]
  categories = [
    f'row {i}' if names is None else 'rare or unknown' if i == UNKNOWN else names[i - 1]
    for i, names in zip(ids.tolist(), known, strict=True)
  ]
  values = [*(numbers[name] for name in features.names[: len(x)]), *categories]
  return [f'{name} = {value}' for name, value in zip(features.names, values, strict=True)]
