"""Explanations of a whole model: permutation importance, probes, logit lens, influence."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch
from bmx.interpret import fields, influence, pictures, probes
from bmx.interpret.dense import is_dense
from bmx.interpret.features import features_of
from bmx.interpret.importance import permutation_importance
from bmx.interpret.patches import places
from bmx.interpret.subject import input_key
from bmx.modes.opened import Opened, host, label_of, place_rows, titles
from bmx.parallel import jit
from bmx.runtime.report import Section, layout
from bmx.tasks import illustrations
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.common import innermost
from bmx.tasks.ctr import log_loss
from bmx.tasks.scores import scores, wilson
from bmx.train.checkpoint import Checkpoints
from bmx.train.evaluate import eval_noise
from bmx.train.run import restored
from bmx.train.state import variables_of

Result = tuple[list[Section], dict[str, str]]
REPEATS = 5  # permutations of a feature
SHOWN = 6  # training examples on each side
TOP = 5  # outputs of a layer
LABELS = ('label', 'y', 'targets', 'mask', 'boxes')


def possible(opened: Opened, batch: Batch) -> tuple[str, ...]:
  """Returns the methods of the whole model that a run can give."""
  task = opened.x.task
  names = ['permutation'] if input_key(batch) in ('x', 'ids') else []
  names += ['probe'] if isinstance(innermost(task), Classification | BinaryClassification) else []
  blocks = probes.blocks_of(places(task, opened.variables, batch))
  names += ['lens'] if blocks and not is_dense(task) else []
  return *names, 'influence'


def permutation(opened: Opened, words: Any) -> Result:
  """Returns how much worse predictions are with each column of a table permuted."""
  rows = _labeled(opened, opened.sample(words.sample), 'permutation')
  features = features_of(rows, opened.state)
  x, task = opened.x, opened.x.task
  program = jit(lambda v, batch: task.predict(v, batch, eval_noise()), x.layout,
                out_shardings=x.layout.sharding())  # fmt: skip
  scale = float(opened.data.metadata.get('target_std', 1.0))

  clicks = input_key(rows) == 'ids'
  given = np.asarray(fields.pack(rows['x'], rows['ids'])) if clicks else rows['x']

  def score(values: np.ndarray) -> float:
    replaced = _unpacked(values, rows['x'].shape[1]) if clicks else {'x': values}
    found = program(opened.variables, opened.placed(rows | replaced))
    predicted = {k: host(v)[: len(values)] for k, v in found.items()}
    return -log_loss(rows | predicted) if clicks else float(scores(rows | predicted, scale).mean())

  found = permutation_importance(score, given, features.masks, REPEATS, x.seed)
  unit = 'accuracy' if 'label' in rows else 'mean of -|error| / deviation'
  unit = '-log loss' if clicks else unit
  notes = {'rows': f'{len(rows["x"]):,}', 'score': f'{unit} {found.score:.4f}',
           'permutations': f'{REPEATS} of each column'}  # fmt: skip
  picture = pictures.bars(features.names, found.mean, found.std)
  return [Section(f'Fall of the score ({unit}) where a column is permuted', picture)], notes


def probe(opened: Opened, words: Any) -> Result:
  """Returns how well a linear classifier reads the classes from each layer."""
  rows = _labeled(opened, opened.sample(words.sample), 'probe')
  x, label = opened.x, rows['label'].astype(int)
  paths = probes.layers_of(places(x.task, opened.variables, opened.placed(rows)))
  program = jit(lambda v, batch: probes.layer_features(x.task, v, batch, paths), x.layout,
                out_shardings=x.layout.sharding())  # fmt: skip
  parts = [[host(f)[: len(part['weights'])] for f in program(opened.variables, opened.placed(part))]
           for part in _parts(rows, opened.data.batch_size)]  # fmt: skip
  order = streams.generator(x.seed, streams.EXPLAIN, 2).permutation(len(label))
  fit, held = np.array_split(order, 2)
  classes = int(label.max()) + 1
  lines, shares = [], []
  for path, features in zip(paths, map(np.concatenate, zip(*parts, strict=True)), strict=True):
    found = probes.fit_probe(features[fit], label[fit], classes)
    hits = int((found(features[held]) == label[held]).sum())
    low, high = wilson(hits, len(held))
    shares.append(hits / len(held))
    lines.append(f'{path}  [{low:.3f}, {high:.3f}]')
  notes = {'rows': f'{len(fit):,} that probes learn from, {len(held):,} others',
           'interval': 'Wilson, 95 %'}  # fmt: skip
  bars = pictures.bars(lines, np.array(shares), ordered=True)
  return [Section('Accuracy of a linear probe of each layer', bars)], notes


def lens(opened: Opened, words: Any) -> Result:
  """Returns the likeliest outputs if the head read each block in place of the last one."""
  x, rows = opened.x, opened.first(words.count)
  read = lambda v, batch: probes.logit_lens(x.task, v, batch)
  program = jit(read, x.layout, out_shardings=x.layout.sharding())
  logits = host(program(opened.variables, opened.placed(rows)))[:, : len(rows['weights'])]
  shares = np.exp(logits - logits.max(-1, keepdims=True))
  shares /= shares.sum(-1, keepdims=True)
  sections = []
  for i, title in enumerate(titles(opened, rows, logits[-1])):
    lines = []
    for layer, row in enumerate(shares[:, i]):
      best = np.argsort(-row, kind='stable')[:TOP]
      said = ', '.join(f'{label_of(opened, int(k))} {row[k]:.2f}' for k in best)
      lines.append((f'block_{layer}', said))
    sections.append(Section(title, _text(opened, rows, i) + layout.grid(('after', 'head'), lines)))
  return sections, {'blocks': str(len(logits))}


def influences(opened: Opened, words: Any) -> Result:
  """Returns the training examples that make each prediction better and worse, by TracIn."""
  rows = _labeled(opened, opened.first(words.count), 'influence')
  x, task = opened.x, opened.x.task
  random = streams.generator(x.seed, streams.EXPLAIN, 3)
  numbers = np.sort(random.permutation(x.data.size)[: words.sample])
  training = x.data.rows(numbers, numbers)
  explained = opened.placed(rows)
  batches = [(place_rows(x, x.data, part), len(part['weights']))
             for part in _parts(training, x.data.batch_size)]  # fmt: skip
  slope = jit(lambda v, batch, i: influence.gradient(task, v, batch, i), x.layout)
  product = jit(lambda v, batch, g: influence.along(task, v, batch, g), x.layout,
                out_shardings=x.layout.sharding())  # fmt: skip

  def products(variables: Any, direction: Any) -> np.ndarray:
    found = [host(product(variables, batch, direction))[:n] for batch, n in batches]
    return np.concatenate(found)

  steps = Checkpoints(opened.workdir / 'checkpoints', constant=task.constant).steps()
  gradient_of = lambda variables, i: slope(variables, explained, np.int32(i))
  found = influence.tracin(_checkpoints(opened, steps), len(rows['weights']), gradient_of, products)
  shown = illustrations.example_html(training, x.data)
  itself = illustrations.example_html(rows, opened.data)
  kind = '' if 'image' in rows else ' texts'
  own = f'<div class="examples{kind}"><div>{{}}</div></div>'
  sections = []
  for i, title in enumerate(titles(opened, rows, opened.outputs(rows))):
    order = np.argsort(-found[i], kind='stable')
    chosen = dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]])
    cells = [_cell(shown, j, numbers, found[i]) for j in chosen]
    grid = f'<div class="examples{kind}">{"".join(cells)}</div>'
    head = '<h3>Training examples, the most helpful first, the most harmful last</h3>'
    sections.append(Section(title, own.format(itself(i)) + head + grid))
  notes = {'training examples': f'{len(numbers):,} of {x.data.size:,}',
           'checkpoints': ', '.join(map(str, steps)),
           'influence': 'sum over checkpoints of learning rate · product of gradients'}  # fmt: skip
  return sections, notes


METHODS: dict[str, Callable[[Opened, Any], Result]] = {
  'permutation': permutation,
  'probe': probe,
  'lens': lens,
  'influence': influences,
}


def _checkpoints(opened: Opened, steps: list[int]) -> Iterator[tuple[Any, float]]:
  for step in steps:
    state, _ = restored(opened.x, opened.workdir, str(step))
    yield variables_of(state), float(opened.x.schedule(step))


def _cell(shown: Callable[[int], str], j: int, numbers: np.ndarray, values: np.ndarray) -> str:
  return (
    f'<div>{shown(int(j))}<b>{values[j]:+.3g}</b> '
    f'<span class="soft">training example {numbers[j] + 1:,}</span></div>'
  )


def _unpacked(values: np.ndarray, numeric: int) -> HostBatch:
  return {k: np.asarray(v) for k, v in fields.unpack(values, numeric).items()}


def _labeled(opened: Opened, rows: HostBatch, method: str) -> HostBatch:
  """Raises InputError if examples have no labels."""
  if not any(key in rows for key in LABELS):
    raise InputError(
      f'explain.method={method}: expected examples with labels; {opened.source} has none'
    )
  return rows


def _parts(rows: HostBatch, size: int) -> Iterator[HostBatch]:
  n = len(rows['weights'])
  for start in range(0, n, size):
    yield {k: v[start : start + size] for k, v in rows.items()}


def _text(opened: Opened, rows: HostBatch, i: int) -> str:
  """The text of an example, if it is one."""
  if 'tokens' not in rows:
    return ''
  real = rows['segment_ids'][i] > 0 if 'segment_ids' in rows else slice(None)
  return f'<pre>{html.escape(opened.tokenizer.decode(rows["tokens"][i][real].tolist()))}</pre>'
