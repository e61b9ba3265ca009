"""The room where parts meet: config -> Experiment. It assembles and decides nothing."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bmx import config as recipes
from bmx.adapt import restore
from bmx.core import hardware
from bmx.core.errors import InputError, did_you_mean
from bmx.core.events import Every, Hook, Selection
from bmx.core.types import Data, Eval, Experiment, Task
from bmx.data.reorder import Reordered
from bmx.ops.ring import zigzag as ring_order
from bmx.parallel import Layout, make_mesh, use
from bmx.train.evaluate import eval_noise
from bmx.train.gradients import Gradient
from bmx.train.state import StateSpec, plan_state, variables_of


def build(
  config: Any, name: str = 'run', devices: Sequence[Any] | None = None, *, read: bool = True
) -> Experiment:
  """Everything a run needs; every mistake in the config is an InputError here, before
  compilation.

  Args:
    devices: to run on, or to plan for; all that are here by default.
    read: False reads no text: its shapes are enough to plan.
  """
  c = recipes.plain(config)
  if not read:
    c['data'], c['eval'] = _shapes(c['data']), {}
    c['stop'], c['keep'] = c['stop'] | {'metric': ''}, c['keep'] | {'metric': ''}
  _check_ranges(c)
  layout = Layout(make_mesh(c['mesh'], devices), c['rules'], c['compute'])
  data = _data(c, c['data'], 'data', layout, train=True)
  evals = {key: _eval(c, key, entry, layout) for key, entry in c['eval'].items()}
  steps = _steps(c, data)
  settled = recipes.settle(c['task'], _preset(c, layout, data, evals), 'task.')
  task = recipes.build(settled, 'task')
  for facts in (data.metadata, *(e.data.metadata for e in evals.values())):
    task.validate(facts)
  schedule = recipes.build(c['schedule'], 'schedule', steps=steps)
  tx = recipes.build(c['optimizer'], 'optimizer', learning_rate=schedule)
  grad_fn = _grad(c, Gradient(task))
  try:
    spec = plan_state(task, tx, data.spec, layout, seed=c['seed'], ema=c['ema'], grad_fn=grad_fn)
  except InputError:
    raise
  except (TypeError, ValueError, ArithmeticError) as error:
    raise InputError(f'no model can be made of task={c["task"]}: {error}') from error

  def rebuild(overrides: Mapping[str, Any]) -> Experiment:
    copy = ConfigDict(config.copy_and_resolve_references())
    recipes.apply(copy, [f'{k}={v}' for k, v in overrides.items()])
    return build(copy, name, devices, read=read)

  return Experiment(
    name=name,
    config=c,
    choices=_choices(settled),
    seed=c['seed'],
    steps=steps,
    task=task,
    tx=tx,
    schedule=schedule,
    grad_fn=grad_fn,
    data=data,
    evals=evals,
    layout=layout,
    every=Every(**c['every']),
    stop=_selection(c, 'stop', evals, task, spec, layout),
    keep=_selection(c, 'keep', evals, task, spec, layout),
    ema=c['ema'],
    guard=c['guard'],
    steps_per_call=c['steps_per_call'],
    watchdog=c['watchdog']['seconds'],
    generate=c['generate'],
    weights=c['init']['path'],
    init=functools.partial(_init, c['init'], task, spec),
    rebuild=rebuild,
    hooks={key: _hook(c, key, part) for key, part in c['hooks'].items()},
    profile=c['profile'],
  )


def _init(
  init: Mapping[str, Any], task: Task, planned: StateSpec, spec: StateSpec | None = None
) -> Any:
  """A new state, as it was planned or (another optimizer, say) as `spec` has it."""
  return restore.start(task, spec or planned, init)


# Data of text -> the arrays of its batches besides tokens, targets and weights.
TEXTS = {
  'bmx.data.text:text': (),
  'bmx.data.text:tokens': (),
  'bmx.data.packing:packed': ('segment_ids', 'positions'),
  'bmx.data.pairs:pairs': ('segment_ids', 'types', 'next'),
}


def _shapes(part: dict[str, Any]) -> dict[str, Any]:
  if part['call'] not in TEXTS:
    return part
  known = {k: v for k, v in part.items() if k != 'tokenizer'}
  words = ('words',) if part.get('words') else ()
  return known | {'call': 'bmx.data.text:shapes', 'more': TEXTS[part['call']] + words}


def _preset(
  c: Mapping[str, Any], layout: Layout, data: Data, evals: Mapping[str, Eval]
) -> dict[str, Any]:
  platform, shards = layout.mesh.devices.flat[0].platform, layout.mesh.shape['seq']
  specs = [d.spec for d in (data, *(e.data for e in evals.values()))]
  lengths = [s['tokens'].shape[1] for s in specs if 'tokens' in s]
  return hardware.preset(platform, c['dtype'], shards, lengths)


CHOICES = ('attention', 'dtype', 'remat', 'scan')  # words of a model that decide how it computes


def _choices(task: Mapping[str, Any]) -> dict[str, Any]:
  """What a person must be able to read in the start table, after every 'auto' is settled."""
  found = {k: v for k, v in task.items() if k in CHOICES}
  for value in task.values():
    found |= _choices(value) if isinstance(value, Mapping) else {}
  return found


def input_data(experiment: Experiment, path: str) -> Data:
  """The data to predict: a file of the kind the recipe trains on, or a numpy archive (.npz)."""
  c = experiment.config
  part = dict(c['data'])
  known = recipes.parameters(recipes.resolve(part['call']), part['call'])
  if path.endswith('.npz') or 'path' not in known:
    part = {'call': 'bmx.data.source:arrays', 'path': path}
  else:
    if 'fit' in known:
      part['fit'] = part.get('fit') or part['path']
    part |= {'path': path, 'split': 'all'}
  data = _data(c, part, '--input', experiment.layout, train=False)
  for key, spec in experiment.data.spec.items():
    if key in ('label', 'y', 'weights', 'targets'):
      continue
    if key not in data.spec or data.spec[key].shape[1:] != spec.shape[1:]:
      given = data.spec[key].shape[1:] if key in data.spec else 'missing'
      raise InputError(f'{path}: {key} is {given}, expected examples of shape {spec.shape[1:]}')
  return data


def _data(
  c: Mapping[str, Any], part: Mapping[str, Any], where: str, layout: Layout, train: bool
) -> Data:
  size = part.get('batch_size', c['batch_size'])
  data = recipes.build(part, where, batch_size=size, seed=c['seed'], train=train)
  shards = math.prod(layout.mesh.shape[a] for a in layout.rules['batch'])
  if size < 1 or size % shards:
    raise InputError(
      f'{where}: batch_size={size} is not divisible by the {shards} parts that the mesh cuts it '
      f'into ({", ".join(layout.rules["batch"])}); change --config.batch_size or --config.mesh'
    )
  if train and layout.mesh.shape['seq'] > 1 and 'tokens' in data.spec:
    data = Reordered(data, ring_order(data.spec['tokens'].shape[1], layout.mesh.shape['seq']))
  layout.batch(data.spec)
  return data


def _eval(c: Mapping[str, Any], name: str, entry: Mapping[str, Any], layout: Layout) -> Eval:
  where = f'eval.{name}'
  entry = dict(entry)
  functions = {p.partition(':')[2]: (p, recipes.resolve(p)) for p in entry.pop('metrics', ())}
  part = entry if 'call' in entry else {**c['data'], **entry}
  data = _data(c, part, where, layout, train=False)
  return Eval(data, {k: _metric(p, fn, data) for k, (p, fn) in functions.items()})


def _metric(path: str, fn: Any, data: Data) -> Any:
  """A function of predictions alone: some metrics read the data too."""
  return functools.partial(fn, data=data) if 'data' in recipes.parameters(fn, path) else fn


def _hook(c: Mapping[str, Any], name: str, part: Mapping[str, Any]) -> Hook:
  """A part whose `every` is the hook's; its callee makes the function that gets the events."""
  part = dict(part)
  every = part.pop('every', 0)
  if not isinstance(every, int) or every < 0:
    raise InputError(f'hooks.{name}.every={every!r}: expected a whole number of steps, at least 0')
  call = recipes.build(part, f'hooks.{name}', seed=c['seed'], batch_size=c['batch_size'])
  if not callable(call):
    raise InputError(
      f'hooks.{name}: {part["call"]} made {call!r}; expected a function of an event, such as an '
      'object with __call__(self, event)'
    )
  return Hook(every, call, name)


def _steps(c: Mapping[str, Any], data: Data) -> int:
  if bool(c['steps']) == bool(c['epochs']):
    raise InputError(f'set one of steps ({c["steps"]}) and epochs ({c["epochs"]})')
  steps = c['steps'] or math.ceil(c['epochs'] * data.size / data.batch_size)
  if steps < 1:
    raise InputError(f'steps={c["steps"]}, epochs={c["epochs"]}: nothing to train')
  return steps


def _grad(c: Mapping[str, Any], gradient: Gradient) -> Any:
  if not c['grad']:
    return gradient
  return recipes.build(c['grad'], 'grad', inner=gradient, batch_size=c['batch_size'])


def _selection(
  c: Mapping[str, Any],
  word: str,
  evals: Mapping[str, Eval],
  task: Any,
  spec: StateSpec,
  layout: Layout,
) -> Selection:
  """Early stopping and the best checkpoint follow a metric of an evaluation that is not a test."""
  chosen = Selection(**c[word])
  if chosen.mode not in ('min', 'max'):
    raise InputError(f"{word}.mode={chosen.mode!r} is not 'min' or 'max'")
  if not chosen.metric:
    return chosen
  parts = chosen.metric.split('/')
  if len(parts) != 3 or parts[0] != 'eval' or parts[1] not in evals:
    known = [f'eval/{name}/loss' for name in evals]
    raise InputError(
      f'{word}.metric={chosen.metric!r} is no metric{did_you_mean(chosen.metric, known)}'
    )
  if parts[1] == 'test':
    raise InputError(f'{word}.metric={chosen.metric!r}: nothing may be chosen by the test set')
  known = _metrics(task, spec, evals[parts[1]], layout)
  if parts[2] not in known:
    raise InputError(f'{word}.metric={chosen.metric!r} is no metric{did_you_mean(parts[2], known)}')
  return chosen


def _metrics(task: Any, spec: StateSpec, entry: Eval, layout: Layout) -> list[str]:
  """The names an evaluation will have, from shapes alone."""
  metrics = lambda v, batch: task.loss(v, batch, eval_noise(), train=False).metrics
  with use(layout):
    names = jax.eval_shape(metrics, variables_of(spec.abstract), entry.data.spec)
  return [*names, *entry.metrics]


# leaf -> (least, bound): least <= value < bound
RANGES = {
  'seed': (0, 2**32),
  'steps_per_call': (0, math.inf),
  'ema': (0, 1),
  'every.log': (0, math.inf),
  'every.eval': (0, math.inf),
  'every.save': (0, math.inf),
  'guard.patience': (0, math.inf),
  'guard.spike': (0, math.inf),
  'profile.start': (1, math.inf),
  'profile.steps': (0, math.inf),
  'watchdog.seconds': (0, math.inf),
  'keep.last': (1, math.inf),
}


def _check_ranges(c: Mapping[str, Any]) -> None:
  for name, (least, bound) in RANGES.items():
    word, _, leaf = name.partition('.')
    value = c[word][leaf] if leaf else c[word]
    if not least <= value < bound:
      limit = '' if bound == math.inf else f' and below {bound}'
      raise InputError(f'--config.{name}={value}: expected at least {least}{limit}')
