"""From a config to an Experiment: the order in which parts are built."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bmx import config as recipes
from bmx.adapt import preprocessor, restore
from bmx.config.words import IMAGE_WORDS
from bmx.core import hardware
from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.events import Every
from bmx.core.experiment import Eval, Experiment
from bmx.core.images import ImageOptions
from bmx.core.types import GradFn, Metadata, Task
from bmx.experiment import private
from bmx.experiment.data import (
  check_carried,
  check_labels,
  check_tokenizers,
  checked,
  evaluation,
  fitted_of,
  inherited,
  train_data,
)
from bmx.experiment.hooks import check_hooks, hook, tracker
from bmx.experiment.ranges import check_generate, check_ranges
from bmx.experiment.selection import selection
from bmx.parallel import Layout, make_mesh
from bmx.runtime.storage import place
from bmx.train.datafile import DataFile, tokenizer_of
from bmx.train.state import StateSpec, plan_state


def build(
  config: Any,
  name: str = 'run',
  devices: Sequence[Any] | None = None,
  *,
  read: bool = True,
  evals: bool = True,
  labels: bool = True,
  stored: DataFile | None = None,
  given: Any = None,
) -> Experiment:
  """Builds everything a run needs, before any compilation.

  Raises InputError for every mistake in the config.

  Args:
    config: a recipe's ConfigDict.
    name: of the run.
    devices: to run on, or to plan for; by default all devices of this machine.
    read: False reads no data: shapes are enough to plan.
    evals: False leaves out the `eval` entries.
    labels: False accepts `eval` entries without labels, which can only be predicted.
    stored: data.json of a run; then training data are not read.
    given: the training data themselves instead of a file: what the parameter `given` of the data
      part takes (a data frame, or a mapping of name to array); `eval` entries without a file of
      their own read them too.
  """
  c = recipes.plain(config)
  recipes.check_words(c)
  if not read or not evals or stored is not None:
    c['stop'], c['keep'] = c['stop'] | {'metric': ''}, c['keep'] | {'metric': ''}
  if not read or not evals:
    c['eval'] = {}
  check_ranges(c)
  for key, folder in c['init'].items():
    if key != 'reinit':
      place(folder)
  layout = Layout(make_mesh(c['mesh'], devices), c['rules'], c['compute'])
  known = inherited(c) if read and stored is None else stored
  data = train_data(c, layout, read=read, stored=stored, known=known, given=given)
  c['task'] = restore.concrete(c['task']) if stored is None else c['task']
  fitted = fitted_of(data.examples)
  made = {key: evaluation(c, key, layout, fitted, known, given) for key in c['eval']}
  steps = _steps(c, data)
  settled = recipes.settle(c['task'], _preset(c, layout, data, made), 'task.')
  task = recipes.build(settled, 'task', metadata=data.metadata)
  if read:
    check_tokenizers(data, made)
    for known in (data.metadata, *(e.data.metadata for e in made.values())):
      with _rejecting(c):
        task.validate(known)
    if stored is None:
      check_carried(task, data)
  check_generate(c['generate'], task)
  if labels:
    check_labels(task, made)
  data = checked(data, task)
  made = {k: dataclasses.replace(e, data=checked(e.data, task)) for k, e in made.items()}
  trained = private.training(
    c,
    layout,
    data,
    task,
    steps,
    functools.partial(_grad, c, data.metadata),
    trains=read and stored is None,
  )
  if c['privacy'] and read:
    private.check_evals(data, made)
  data, steps, grad_fn = trained.data, trained.steps, trained.grad_fn
  schedule = recipes.build(c['schedule'], 'schedule', steps=steps)
  tx = recipes.build(c['optimizer'], 'optimizer', learning_rate=schedule, steps=steps)
  tx = task.transform(tx, steps)
  with _rejecting(c):
    spec = plan_state(
      task, tx, data.abstract, layout, seed=c['seed'], ema=c['ema'], grad_fn=grad_fn
    )

  def rebuild(overrides: Mapping[str, Any]) -> Experiment:
    copy = ConfigDict(config.copy_and_resolve_references())
    recipes.apply(copy, [f'{k}={v}' for k, v in overrides.items()])
    more = {'labels': labels, 'stored': stored, 'given': given}
    return build(copy, name, devices, read=read, evals=evals, **more)

  experiment = Experiment(
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
    evals=made,
    layout=layout,
    every=Every(**{k: _interval(v, steps) for k, v in c['every'].items()}),
    stop=selection(c, 'stop', made, task, spec, layout),
    keep=selection(c, 'keep', made, task, spec, layout),
    ema=c['ema'],
    guard=c['guard'],
    steps_per_call=c['steps_per_call'],
    watchdog=c['watchdog']['seconds'],
    generate={k: v for k, v in c['generate'].items() if k not in IMAGE_WORDS},
    images=ImageOptions(**{k: c['generate'][k] for k in IMAGE_WORDS}),
    weights=c['init']['path'],
    init=functools.partial(_init, c['init'], data, task, spec),
    rebuild=rebuild,
    writers={key: tracker(c, key, part) for key, part in c['writers'].items()},
    hooks={**trained.hooks, **{key: hook(c, key, part) for key, part in c['hooks'].items()}},
    profile=_profile(c, steps),
    secret=trained.secret,
    step_values=trained.values,
  )
  if read and stored is None:
    check_hooks(experiment)
  return experiment


@contextlib.contextmanager
def _rejecting(c: Mapping[str, Any]) -> Iterator[None]:
  """Context that raises InputError where the arguments of a model have a wrong type or value."""
  try:
    yield
  except InputError:
    raise
  except (TypeError, ValueError, ArithmeticError) as error:
    raise InputError(f'task={c["task"]}: the model rejected its arguments: {error}') from error


def _interval(every: int, steps: int) -> int:
  """Steps between two calls, of which a negative number gives how many a run has."""
  return every if every >= 0 else max(1, steps // -every)


def _init(
  init: Mapping[str, Any],
  data: Data,
  task: Task,
  planned: StateSpec,
  spec: StateSpec | None = None,
) -> Any:
  """A new state, as it was planned or (another optimizer, say) as `spec` has it."""
  classes = data.metadata.get('class_names', ())
  if init['path']:
    preprocessor.check(init['path'], restore.is_run(init['path']), data.metadata, data.spec)
  return restore.start(task, spec or planned, init, classes, tokenizer_of(data))


def _preset(
  c: Mapping[str, Any], layout: Layout, data: Data, evals: Mapping[str, Eval]
) -> dict[str, Any]:
  platform, shards = layout.mesh.devices.flat[0].platform, layout.mesh.shape['seq']
  specs = [d.spec for d in (data, *(e.data for e in evals.values()))]
  lengths = [s[k].shape[0] for s in specs for k in ('tokens', 'source') if k in s]
  known = data.metadata
  named = len(known.get('class_names', ()))
  outputs = known.get('num_classes') or named or known.get('num_targets')
  sizes = {'num_outputs': outputs} if outputs else {}
  tuples = lambda v: tuple(v) if isinstance(v, list) else v  # data.json has lists
  sizes |= {k: tuples(known[k]) for k in SIZES if k in known}
  return hardware.preset(platform, c['dtype'], shards, lengths) | sizes


# Facts of the data that a model may have as 'auto', besides its outputs.
SIZES = (
  'field_sizes', 'num_numeric', 'num_users', 'num_items', 'history', 'user_features',
  'item_features', 'vocab_size', 'end_token',
)  # fmt: skip
# Words of a model that decide how it computes, and what it learned of the data.
CHOICES = ('attention', 'dtype', 'num_outputs', 'remat', 'scan')


def _choices(task: Mapping[str, Any]) -> dict[str, Any]:
  """Words of CHOICES in the task, after every 'auto' is settled; the start table shows them."""
  found = {k: v for k, v in task.items() if k in CHOICES}
  for value in task.values():
    found |= _choices(value) if isinstance(value, Mapping) else {}
  return found


def _steps(c: Mapping[str, Any], data: Data) -> int:
  if bool(c['steps']) == bool(c['epochs']):
    fix = (
      'the recipe counts epochs and the command steps, or the reverse: add --config.epochs=0 to '
      'count steps, --config.steps=0 to count epochs'
      if c['steps']
      else 'add --config.steps=1000, say'
    )
    raise InputError(f'set one of steps ({c["steps"]}) and epochs ({c["epochs"]}): {fix}')
  steps = c['steps'] or math.ceil(c['epochs'] * data.size / data.batch_size)
  if steps < 1:
    raise InputError(f'steps={c["steps"]}, epochs={c["epochs"]}: nothing to train')
  if steps >= 2**31:  # steps are int32
    shown = f'{steps:.4g}' if steps < 10**18 else 'over 1e18'
    raise InputError(f'steps={shown} (epochs={c["epochs"]}): expected below {2**31}')
  return steps


def _profile(c: Mapping[str, Any], steps: int) -> dict[str, int]:
  profile = dict(c['profile'])
  if profile['steps'] and profile['start'] >= steps:
    raise InputError(f'profile.start={profile["start"]}: expected below steps={steps}')
  return profile


def _grad(c: Mapping[str, Any], metadata: Metadata, gradient: GradFn, rows: int) -> Any:
  """The GradFn of a batch of `rows`: the wrappers of the word `grad` around a gradient."""
  if not c['grad']:
    return gradient
  known = {'batch_size': rows, 'metadata': metadata}
  return recipes.build(c['grad'], 'grad', inner=gradient, **known)
