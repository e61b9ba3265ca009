"""Mode `plan`: a layout, its memory, time and costs on absent devices, and their compiler."""

import logging
import os
import pathlib
import sys
from typing import Any, NoReturn

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.core import chips, errors, spending
from bmx.core.errors import InputError
from bmx.modes import Request
from bmx.plan import budget, processor, topology
from bmx.plan.answer import Answer, write
from bmx.plan.memory import Traces
from bmx.plan.picture import picture
from bmx.plan.search import Search
from bmx.plan.summary import far_off, layout, memory_cell, summary
from bmx.runtime import logs

log = logging.getLogger('bmx')
COMPILED = 6  # layouts that are compiled at most


def run(request: Request) -> int:
  """Chooses a layout for --topology, and a topology for --budget; runs nothing.

  Needs neither an accelerator nor data nor a run directory. Writes plan.json and planned.py, a
  recipe that trains so.
  """
  logs.start_logging(pathlib.Path())
  if not request.topology:
    raise InputError('--mode=plan needs --topology, for instance v5e:4x4, h200:8 or auto')
  limit = budget.parse(request.budget) if request.budget else None
  if request.topology == 'auto' and limit is None:
    raise InputError('--topology=auto: expected --budget, such as 500usd, 24h or 30kwh')
  words = recipes.plain(request.config)['plan']
  spending.by_kind(words['prices'], 'plan.prices')
  if limit and limit.unit == 'usd' and not words['prices']:
    raise InputError('--budget in usd: expected prices; set --config.plan.prices=v5p=DOLLARS,...')
  names = topology.AUTO if request.topology == 'auto' else request.topology.split(',')
  log.info('plan       %s for %s', request.name, ', '.join(names))
  digest = recipes.digest(request.config)
  ranked: list[list[Answer]] = []
  traces: Traces = {}
  try:
    for name in names:
      ranked.append(_counted(request, name.strip(), words, traces, optional=len(names) > 1))
    answers = _compiled(ranked, limit)
  except KeyboardInterrupt:
    _so_far(ranked)
  folder = pathlib.Path(request.output or f'plans/{request.name}')
  path = write(folder, answers, request.recipe, request.overrides, digest)
  (folder / 'plan.svg').write_text(picture(answers))
  log.info('%s', summary(answers))
  facts = answers[0].compiled or {}
  log.info('%s', '\n'.join(f'{k:28} {v}' for k, v in facts.items()))
  log.info('plan       bmx train --config=%s', path)
  return errors.DONE


def _counted(
  request: Request, name: str, words: Any, traces: Traces, optional: bool
) -> list[Answer]:
  """Returns the layouts of a topology, the best first; none where an optional one is impossible."""
  kind = name.partition(':')[0]
  devices = topology.devices(name)
  chip = processor.this_cpu() if kind == processor.KIND else chips.KINDS[kind]
  fixed = frozenset(text.partition('=')[0] for text in request.overrides)
  first, plain = _build(request, devices)
  report = lambda line: log.info('%s', line)
  try:
    choices = Search(first.rebuild, len(devices), chip, fixed, report, traces).choices()
  except InputError as error:
    if not optional:
      raise
    log.info('plan       %s: %s', name, str(error).splitlines()[0])
    return []
  spent = lambda c: spending.spend(words, kind, len(devices), c.time.likely * c.experiment.steps)
  choices = [c._replace(overrides=c.overrides | plain) for c in choices]
  return [Answer(name, kind, chip, c, spent(c)) for c in choices]


def _build(request: Request, devices: list[Any]) -> tuple[Any, dict[str, Any]]:
  """Builds the experiment on devices, with plain attention where cuDNN cannot be compiled.

  Returns (the experiment, the words that it sets for that).
  """
  config = request.config.copy_and_resolve_references()
  task, word = recipes.plain(config)['task'], 'task'
  while 'inner' in task:
    task, word = task['inner'], f'{word}.inner'
  plain = {f'{word}.model.attention': 'xla'}
  try:
    return experiments.build(config, request.name, devices, read=False), {}
  except InputError as error:
    if 'cuDNN not found' not in str(error):
      raise
  log.info("plan       attention=xla: the wheels of cuDNN are not installed; 'cudnn' needs less")
  recipes.apply(config, [f'{k}={v}' for k, v in plain.items()])
  return experiments.build(config, request.name, devices, read=False), plain


def _compiled(ranked: list[list[Answer]], limit: budget.Budget | None) -> list[Answer]:
  """Compiles layouts by rank until one fits; returns the best of each topology, that one first.

  Raises InputError if none fits, or the budget allows none.
  """
  found = [answers for answers in ranked if answers]
  if not found:
    raise InputError('no topology can hold the model')
  queue = sorted((a for answers in found for a in answers), key=lambda a: _order(a, limit))
  queue = [a for a in queue if a.choice.fits(a.chip, 1.1)]
  if limit and queue:
    allowed = [a for a in queue if limit.allows(a.spending)]
    if not allowed:
      raise InputError(_beyond(queue, limit))
    queue = allowed
  for answer in queue[:COMPILED]:
    log.info('compiling  %s, %s: seconds to minutes', answer.topology, layout(answer))
    answer.compile()
    log.info('compiled   %s: %s', answer.topology, memory_cell(answer))
    if answer.fits:
      rest = [answers[0] for answers in found if answer not in answers]
      return [answer, *rest]
  raise InputError(far_off([answers[0] for answers in found]))


def _order(answer: Answer, limit: budget.Budget | None) -> tuple[float, ...]:
  """Orders by time; with a budget of hours by energy, or devices, for it is met anyway."""
  if limit and limit.unit == 'h':
    spent = answer.spending
    least = spent.usd if spent.usd is not None else answer.choice.experiment.layout.devices
    return least, *answer.choice.rank
  total = answer.choice.rank[0] * answer.choice.experiment.steps
  return (total,)


def _beyond(queue: list[Answer], limit: budget.Budget) -> str:
  known = [a for a in queue if a.spending._asdict()[limit.unit] is not None]
  unit = budget.UNITS[limit.unit]
  if not known:
    return f'--budget in {unit}: unknown for all of these chips; set plan.prices or plan.watts'
  least = min(known, key=lambda a: a.spending._asdict()[limit.unit])
  return (
    f'--budget={limit.amount:g}{limit.unit}: the training needs at least '
    f'{least.spending._asdict()[limit.unit]:,.1f} {unit} ({least.topology}); raise it, or train '
    'fewer steps or a smaller model'
  )


def _so_far(ranked: list[list[Answer]]) -> NoReturn:
  """Prints the answer at an interrupt and ends: the compiler's thread cannot be stopped."""
  best = [answers[0] for answers in ranked if answers]
  log.info('plan       interrupted; by hand so far, not compiled:')
  log.info('%s', summary(best) if best else 'nothing')
  sys.stderr.flush()
  os._exit(errors.INTERRUPTED)
