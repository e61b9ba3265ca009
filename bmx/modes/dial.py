"""Mode `dial`: size and tokens of a language model that spend a budget best, as a recipe."""

import json
import logging
import math
import pathlib
from typing import Any

import jax

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.config.planned import render
from bmx.core import chips, errors, spending
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.layout import AXES
from bmx.modes import Request
from bmx.plan import budget, scaling, topology
from bmx.plan.dial import Sized, Sizes
from bmx.runtime import logs
from bmx.runtime.writer import table
from bmx.train import start

log = logging.getLogger('bmx')
UNITS = (*budget.UNITS, 'flops')
WARMUP = 10  # steps for each one of a warmup, at least


def run(request: Request) -> int:
  """Chooses a size of the recipe and its steps for --budget; trains nothing.

  Writes dial.json and dialed.py, a recipe that trains so.
  """
  logs.start_logging(pathlib.Path())
  if not request.budget:
    raise InputError('dial: expected --budget, such as 1e19flops, or 24h with --topology=h100:8')
  limit = budget.parse(request.budget, UNITS)
  words = recipes.plain(request.config)['plan']
  chosen_law = scaling.law(words['law'])
  x = _build(request)
  flops = limit.amount if limit.unit == 'flops' else _flops(request, x, words, limit)
  sized = Sizes(x).nearest(chosen_law.best(flops).parameters)
  tokens_of_step = start.units(x)['tokens']
  steps = round(flops / scaling.FLOPS / sized.parameters / tokens_of_step)
  if steps < 1:
    raise InputError(f'--budget={request.budget}: trains less than a step of {tokens_of_step:,} '
                     'tokens; raise it, or lower batch_size')  # fmt: skip
  overrides: dict[str, Any] = sized.words | _length_of(request, steps)
  path = _write(request, flops, words['law'], sized, steps * tokens_of_step, overrides)
  log.info('%s', _table(flops, sized, steps * tokens_of_step, chosen_law))
  log.info(
    'dial       %s\nlearning rate and batch size stay as the recipe has them: search them on a '
    'smaller budget (bmx sweep)\nfits?      bmx plan %s --topology=...\ntrains     bmx train '
    '--config=%s',
    ', '.join(f'{k}={v}' for k, v in overrides.items()), path, path,
  )  # fmt: skip
  return errors.DONE


def _build(request: Request) -> Experiment:
  """Builds the experiment on one device, whatever mesh it is for."""
  config = request.config.copy_and_resolve_references()
  recipes.apply(config, [f'mesh.{axis}=1' for axis in AXES])
  x = experiments.build(config, request.name, jax.devices()[:1], read=False)
  if 'tokens' not in x.data.abstract:
    raise InputError(f'{request.name}: expected a language model, as the scaling laws are of those')
  return x


def _flops(request: Request, x: Experiment, words: Any, limit: budget.Budget) -> float:
  """Returns the FLOPs that a budget of hours, money or energy computes on --topology."""
  if not request.topology or request.topology == 'auto' or ',' in request.topology:
    raise InputError(f'--budget={request.budget}: expected --topology with one slice or node, such '
                     'as h100:8; FLOPs need none')  # fmt: skip
  kind, devices = topology.count(request.topology)
  hour = spending.spend(words, kind, devices, 3600.0)._asdict()[limit.unit]
  if hour is None:
    word = 'prices' if limit.unit == 'usd' else 'watts'
    raise InputError(f'--budget={request.budget}: unknown for {kind}; set --config.plan.{word}='
                     f'{kind}=NUMBER')  # fmt: skip
  chip = chips.KINDS[kind]
  peak = chip.peak(x.choices.get('dtype', 'float32')) * devices
  hours = limit.amount / hour
  log.info(
    'dial       %s on %s: %.4g hours at %.0f %% of the peak, as published trainings reach (likely)',
    request.budget, request.topology, hours, 100 * chip.efficiency,
  )  # fmt: skip
  return peak * chip.efficiency * hours * 3600


def _length_of(request: Request, steps: int) -> dict[str, Any]:
  """Returns the words of a training of so many steps; a warmup is a tenth of it at most."""
  config = recipes.plain(request.config)
  made: dict[str, Any] = {'steps': steps, 'epochs': 0.0}
  warmup = config['schedule'].get('warmup')
  if isinstance(warmup, int) and warmup * WARMUP > steps:
    made['schedule.warmup'] = math.floor(steps / WARMUP)
  return made


def _write(
  request: Request, flops: float, law: str, sized: Sized, tokens: int, overrides: dict[str, Any]
) -> pathlib.Path:
  folder = pathlib.Path(request.output or f'dials/{request.name}')
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'dialed.py'
  texts = tuple(f'{k}={v}' for k, v in overrides.items())
  digest = recipes.digest(request.config)
  title = f'{request.recipe}, sized for {request.budget}'
  path.write_text(render(title, 'dial', path, request.recipe, request.overrides, texts, digest))
  record = {
    'recipe': request.recipe,
    'budget': request.budget,
    'topology': request.topology,
    'flops': flops,
    'law': law,
    'laws': {name: each.best(flops)._asdict() for name, each in scaling.LAWS.items()},
    'parameters': sized.parameters,
    'tokens': tokens,
    'words': overrides,
  }
  (folder / 'dial.json').write_text(json.dumps(record, indent=1) + '\n')
  return path


def _table(flops: float, sized: Sized, tokens: int, law: scaling.ScalingLaw) -> str:
  """Formats the optimum of every law, and the chosen size."""
  rows = [('', 'parameters', 'tokens', 'tokens a parameter', "loss of the paper's text")]
  line = lambda name, n, d, loss: (name, f'{n:,.0f}', f'{d:,.0f}', f'{d / n:.1f}', f'{loss:.3f}')
  rows += [line(name, *each.best(flops)) for name, each in scaling.LAWS.items()]
  rows.append(line('chosen', sized.parameters, tokens, law.loss(sized.parameters, tokens)))
  sources = [f'{name}: {each.paper}' for name, each in scaling.LAWS.items()]
  return '\n'.join([f'{flops:.4g} FLOPs (6 a parameter and token)', table(rows), *sources])
