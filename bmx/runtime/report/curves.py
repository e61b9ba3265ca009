"""Curves and best values of the lines of metrics.jsonl."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bmx.runtime.writer import TIMES

MAX_POINTS = 800  # of a curve; more are averaged
MAX_CHARTS = 60
MAX_CURVES = 40  # of a chart
MAX_STEP = 2**53  # above it, JavaScript's numbers are not exact
LARGEST = 1e300  # values beyond it cannot be drawn on an axis
RATES = ('tokens_per_second', 'examples_per_second', 'joules_per_token', 'joules_per_example')
NOT_SHOWN = {'step', *TIMES} - set(RATES)
# By the last part of a metric's name, where the config does not say which direction is better.
LOWER = ('loss', 'error', 'perplexity', 'bits_per_byte', 'mae', 'mse', 'rmse')
HIGHER = ('accuracy', 'f1', 'auc', 'matthews', 'pearson', 'spearman', 'exact_match')
FIRST = ('loss', 'accuracy')  # charts in this order, then the rest as logged


@dataclasses.dataclass(frozen=True)
class Curve:
  """Values over steps.

  Attributes:
    steps: of the points; the last step of each group where points are averaged.
    values: of the points; means where points are averaged.
    low: least value of each group; () where nothing is averaged.
    high: largest value of each group.
    logged: values that were logged, finite or not.
    last: newest finite value.
  """

  steps: Sequence[float]
  values: Sequence[float]
  low: Sequence[float] = ()
  high: Sequence[float] = ()
  logged: int = 0
  last: float = math.nan


class Result(NamedTuple):
  """Values of one metric.

  Attributes:
    newest: value of the last line that has the metric.
    best: best finite value; None where the direction is unknown, or for the entry `test`.
    step: of `best`.
  """

  newest: float
  best: float | None = None
  step: int | None = None


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of a line that a curve can show, without step and times.

  >>> numbers_of({'step': 1, 'time': 3.0, 'loss': 2, 'name': 'x', 'huge': 10**400})
  {'loss': 2.0}
  """
  return {
    k: float(v)
    for k, v in line.items()
    if (type(v) is float or (type(v) is int and abs(v) < MAX_STEP)) and k not in NOT_SHOWN
  }


def charts(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
  """Returns one chart for each metric; training and each evaluation are its curves.

  Args:
    lines: of a metrics.jsonl, in order.
  """
  points: dict[str, list[tuple[int, float]]] = {}
  for line in lines:
    if 0 <= line['step'] < MAX_STEP:
      for key, value in numbers_of(line).items():
        points.setdefault(key, []).append((line['step'], value))
  made: dict[str, dict[str, Curve]] = {}
  for key, values in points.items():
    parts = key.split('/')
    evaluated = parts[0] == 'eval' and len(parts) > 2
    chart, name = (parts[-1], parts[1]) if evaluated else (key, 'train')
    curve = thin(values)
    if len(curve.steps) and len(made.get(chart, ())) < MAX_CURVES:
      made.setdefault(chart, {})[name] = curve
  shown = {k: v for k, v in made.items() if not _only_zeros(k, v)}
  order = sorted(shown, key=lambda k: (k in RATES, FIRST.index(k) if k in FIRST else len(FIRST)))
  return {k: shown[k] for k in order}


def _only_zeros(chart: str, curves: Mapping[str, Curve]) -> bool:
  """Whether a chart counts skipped steps, and there were none."""
  return chart == 'skipped' and not any(any(c.values) for c in curves.values())


def thin(points: Sequence[tuple[int, float]], most: int = MAX_POINTS) -> Curve:
  """Returns the curve of points, with at most `most` of them.

  More points are cut into groups of equal number; each becomes its mean, least and largest value.
  Values that are not finite are left out.

  >>> thin([(1, 1.0), (2, 3.0), (3, 5.0), (4, 5.0)], most=2)
  Curve(steps=[2, 4], values=[2.0, 5.0], low=[1.0, 5.0], high=[3.0, 5.0], logged=4, last=5.0)
  """
  finite = [(step, value) for step, value in points if abs(value) < LARGEST]
  steps, values = [s for s, _ in finite], [v for _, v in finite]
  last = values[-1] if values else math.nan
  if len(values) <= most:
    return Curve(steps, values, logged=len(points), last=last)
  groups = np.array_split(np.array(values), most)
  ends = np.cumsum([len(g) for g in groups]) - 1
  of_each = lambda fn: [float(fn(g)) for g in groups]
  mean = [min(max(m, g.min()), g.max()) for m, g in zip(of_each(np.mean), groups, strict=True)]
  low, high = of_each(np.min), of_each(np.max)
  return Curve([steps[i] for i in ends], list(map(float, mean)), low, high, len(points), last)


def direction(name: str, config: Mapping[str, Any]) -> str:
  """Returns 'min', 'max' or '' for a metric: by `keep` and `stop`, else by its name.

  >>> direction('eval/valid/macro_f1', {}), direction('learning_rate', {})
  ('max', '')
  """
  for word in ('keep', 'stop'):
    chosen = config.get(word)
    if isinstance(chosen, Mapping) and chosen.get('metric') == name:
      return 'max' if chosen.get('mode') == 'max' else 'min'
  last = name.split('/')[-1]
  ends = lambda known: any(last == k or last.endswith(f'_{k}') for k in known)
  return 'min' if ends(LOWER) else 'max' if ends(HIGHER) else ''


def results(lines: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Result]:
  """Returns the newest and the best value of every metric, by its full name.

  The test set must not select anything: metrics of the entry `test` have no best value.
  """
  found: dict[str, Result] = {}
  modes: dict[str, str] = {}
  for line in lines:
    for key, value in numbers_of(line).items():
      if key not in modes:
        modes[key] = '' if key.startswith('eval/test/') else direction(key, config)
      best, step = found[key][1:] if key in found else (None, None)
      if modes[key] and math.isfinite(value) and _better(modes[key], value, best):
        best, step = value, line['step']
      found[key] = Result(value, best, step)
  return found


def _better(mode: str, value: float, best: float | None) -> bool:
  return best is None or (value < best if mode == 'min' else value > best)


def headline(found: Mapping[str, Result], config: Mapping[str, Any]) -> str:
  """Returns the metric that stands on top: that of `keep` or `stop`, else of an evaluation.

  Validation comes before the test set, metrics of quality before the loss; '' without a metric.
  """
  for word in ('keep', 'stop'):
    chosen = config.get(word)
    if isinstance(chosen, Mapping) and chosen.get('metric') in found:
      return str(chosen['metric'])
  ranked = [
    (not name.startswith('eval/'), name.startswith('eval/test/'), direction(name, config) != 'max',
     name.split('/')[-1] != 'loss', i, name)
    for i, name in enumerate(found)
    if name.startswith('eval/') or name == 'loss'
  ]  # fmt: skip
  return min(ranked)[-1] if ranked else ''
