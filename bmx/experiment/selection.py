"""Early stopping and the best checkpoint: which metric selects, and whether it exists."""

from collections.abc import Mapping
from typing import Any

import jax

from bmx.core.errors import InputError, did_you_mean
from bmx.core.events import Selection
from bmx.core.experiment import Eval
from bmx.parallel import Layout, use
from bmx.train.evaluate import eval_noise
from bmx.train.state import StateSpec, variables_of


def selection(
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
    raise InputError(f"{word}.mode={chosen.mode}: expected 'min' or 'max'")
  if not chosen.metric:
    return chosen
  parts = chosen.metric.split('/')
  if len(parts) != 3 or parts[0] != 'eval' or parts[1] not in evals:
    near = _near(parts[-1], task, spec, evals, layout)
    raise InputError(f'{word}.metric={chosen.metric}: expected eval/ENTRY/METRIC{near}')
  if parts[1] == 'test':
    raise InputError(
      f'{word}.metric={chosen.metric}: the test set must not select a checkpoint; use a validation '
      f'entry'
    )
  known = metric_names(task, spec, evals[parts[1]], layout)
  if parts[2] not in known:
    near = did_you_mean(parts[2], known)
    raise InputError(f'{word}.metric={chosen.metric}: expected a metric of that entry{near}')
  return chosen


def _near(name: str, task: Any, spec: StateSpec, evals: Mapping[str, Eval], layout: Layout) -> str:
  """A proposal for a metric that is not written as eval/ENTRY/METRIC."""
  found = {k: metric_names(task, spec, e, layout) for k, e in evals.items() if k != 'test'}
  same = [f'eval/{entry}/{name}' for entry, names in found.items() if name in names]
  if same:
    return f'; did you mean {same[0]!r}?'
  if not found:
    return '; the config has no entry to select by: set --config.eval.valid.split=valid'
  return did_you_mean(name, [f'eval/{entry}/{m}' for entry, names in found.items() for m in names])


def metric_names(task: Any, spec: StateSpec, entry: Eval, layout: Layout) -> list[str]:
  """Names of the metrics of an evaluation, from shapes alone."""
  metrics = lambda v, batch: task.loss(v, batch, eval_noise(), train=False).metrics
  with use(layout):
    names = jax.eval_shape(metrics, variables_of(spec.abstract), entry.data.abstract)
  return [*names, *entry.metrics]
