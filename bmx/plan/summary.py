"""A plan as people read it: a table, and what would make a model fit."""

import math

from bmx.parallel import describe
from bmx.plan import processor
from bmx.plan.answer import Answer
from bmx.plan.memory import GIB
from bmx.runtime.writer import table

HEAD = (
  'topology',
  'layout',
  'GiB of a device',
  'step s (bound)',
  'step s ({how})',
  '{unit}/s ({how})',
  'MFU ({how})',
  'hours ({how})',
  'USD (assumed)',
  'kWh (assumed)',
  'kg CO2e (assumed)',
)


def summary(answers: list[Answer]) -> str:
  """Formats answers as a table with what its words mean."""
  a = answers[0]
  how = ' or '.join(dict.fromkeys(map(_how, answers)))
  head = tuple(title.format(unit=a.choice.costs.unit, how=how) for title in HEAD)
  lines = [table([head, *map(_row, answers)])]
  costs, time = a.choice.costs, a.choice.time
  lines += [
    f'{costs.parameters:,} parameters; a step reads {costs.units:,} {costs.unit} and has '
    f'{costs.flops:.4g} FLOPs (contractions of the gradient, attention in full), {costs.run:.4g} '
    'of which run with recomputation and without masked blocks',
    f'bound: each chip at its {_peaks(a)} peak, compute, memory and network overlapped '
    f'({a.topology}: {time.compute:.3g}, {time.memory:.3g} and {time.network:.3g} s; '
    f'{time.apart:.3g} s if the network waits)',
    _speed(a),
    'assumed: plan.prices, the power of the boards alone, plan.carbon; "?": a price, power or '
    'carbon intensity is unknown: set plan.prices, plan.watts, plan.carbon',
  ]
  return '\n'.join(lines)


def _how(a: Answer) -> str:
  return 'likely' if a.measured is None else 'measured'


def _peaks(a: Answer) -> str:
  return 'measured' if a.kind == processor.KIND else 'published'


def _speed(a: Answer) -> str:
  """Says where the speed of the first answer comes from."""
  share = f'{a.choice.time.efficiency:.1%} of the bound'
  if a.measured is not None:
    return f'measured: the step ran on this machine, on a batch of zeros, and reached {share}'
  return (
    f"likely: {share}, as published trainings reach on {a.chip.family} or its vendor's chips "
    '(experiments/plan/results.json)'
  )


def _row(a: Answer) -> tuple[str, ...]:
  x, time, costs, spent = a.choice.experiment, a.choice.time, a.choice.costs, a.spending
  peak = a.chip.peak(x.choices.get('dtype', 'float32')) * x.layout.devices
  return (
    a.topology,
    layout(a),
    memory_cell(a),
    f'{time.bound:.3g}',
    f'{time.likely:.3g}',
    f'{costs.units / time.likely:,.0f}',
    f'{costs.flops / time.likely / peak:.1%}',
    f'{spent.h:,.1f}' if spent.h >= 1 else f'{spent.h:.2g}',
    *('?' if v is None else f'{v:,.0f}' for v in (spent.usd, spent.kwh, spent.kg)),
  )


def layout(a: Answer) -> str:
  """Formats mesh and other words of a layout."""
  rest = [f'{k.rpartition(".")[2]} {v}' for k, v in a.choice.overrides.items() if 'mesh.' not in k]
  return ', '.join([describe(a.choice.experiment.layout.mesh), *rest])


def memory_cell(a: Answer) -> str:
  """Formats the memory of a device: 'x of y', or by how much it does not fit."""
  have = a.chip.usable / GIB
  source = 'compiled' if a.compiled or a.error else 'counted'
  if a.fits:
    return f'{a.gib:.3g} of {have:.1f} ({source})'
  over = f'{a.gib - have:.1f} too many' if a.gib > have else 'refused'
  return f'{over} ({source})'


def far_off(answers: list[Answer]) -> str:
  """Says by how much a model fits nowhere, and what would make it fit."""
  nearest = min(answers, key=lambda a: a.gib / (a.chip.usable / GIB))
  have = nearest.chip.usable / GIB
  times = max(2, math.ceil(nearest.gib / have))
  return (
    f'{nearest.choice.experiment.name} fits none of {", ".join(a.topology for a in answers)}: the '
    f'nearest is {nearest.topology} with {layout(nearest)}, which needs {nearest.gib:.1f} GiB of a '
    f'device that has {have:.1f}; {times} times as many devices, a smaller batch_size or length, '
    'or a chip with more memory make it fit'
  )
