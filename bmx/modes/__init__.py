"""Modes of the command line: one module each, listed in `MODES`. Imports no jax."""

import dataclasses
import importlib
import pathlib
import time
from typing import Any, NamedTuple

from bmx.config.spaces import Space
from bmx.core.errors import InputError


class Mode(NamedTuple):
  """A mode: `module` defines `run(request) -> exit code`; `flags` are those that it reads."""

  module: str
  description: str
  flags: tuple[str, ...] = ()


WITHOUT_CONFIG = (
  'config',
  'compare',
  'promote',
  'scale',
  'anonymize',
)  # modes that work without --config and --workdir
MODES = {
  'train': Mode('bmx.modes.train', 'trains; the same --workdir resumes'),
  'eval': Mode('bmx.modes.evaluate', 'evaluates a checkpoint on every `eval` entry', ('--step',)),
  'predict': Mode(
    'bmx.modes.predict',
    'writes predictions of --input or of the test set to --output',
    ('--step', '--input', '--output'),
  ),
  'generate': Mode(
    'bmx.modes.generate',
    'continues each --prompt or each line of --input; writes images to --output',
    ('--step', '--input', '--prompt', '--output'),
  ),
  'compress': Mode(
    'bmx.modes.compress',
    'quantizes or prunes the weights of --workdir into a run directory --output',
    ('--step', '--output'),
  ),
  'merge': Mode(
    'bmx.modes.merge',
    'writes the weights of a run, adapters added, as a Hugging Face folder',
    ('--step', '--output'),
  ),
  'export': Mode(
    'bmx.modes.export',
    'writes a package that runs without bmx, a Hugging Face folder or ONNX',
    ('--step', '--output'),
  ),
  'chat': Mode('bmx.modes.chat', 'answers questions on the terminal', ('--step',)),
  'serve': Mode('bmx.modes.serve', 'answers requests over HTTP, as OpenAI does', ('--step',)),
  'explain': Mode(
    'bmx.modes.explain',
    'explains predictions of --input or of the test set, as a page',
    ('--step', '--input', '--output'),
  ),
  'card': Mode(
    'bmx.modes.card', 'writes the model card of a run, card.md and card.html', ('--step',)
  ),
  'drift': Mode(
    'bmx.modes.drift',
    'compares --input, captured or a file, with the data that a run was evaluated on',
    ('--step', '--input', '--output'),
  ),
  'learn': Mode(
    'bmx.modes.learn',
    'trains a challenger in --output, from a run and the labeled examples of --input',
    ('--input', '--output'),
  ),
  'gate': Mode(
    'bmx.modes.gate',
    'compares a challenger (--workdir) with a champion (--run): may it replace it?',
    ('--step', '--input', '--run'),
  ),
  'promote': Mode(
    'bmx.modes.promote',
    'makes --pointer name a run that a gate has accepted; --back: what it named before',
    ('--step', '--pointer', '--back', '--force'),
  ),
  'anonymize': Mode(
    'bmx.modes.anonymize',
    'replaces personal data in --input, a text or a table, and counts it by type',
    ('--input', '--output'),
  ),
  'plan': Mode(
    'bmx.modes.plan',
    'chooses a layout for --topology, or devices for --budget, and compiles it; runs nothing',
    ('--topology', '--budget', '--output'),
  ),
  'dial': Mode(
    'bmx.modes.dial',
    'chooses size and tokens of a language model for --budget, by scaling laws; runs nothing',
    ('--topology', '--budget', '--output'),
  ),
  'config': Mode(
    'bmx.modes.config', 'prints the words of a recipe; without one, lists the recipes', ('--words',)
  ),
  'compare': Mode(
    'bmx.modes.compare', 'compares runs: curves, results, words that differ', ('--run', '--output')
  ),
  'scale': Mode(
    'bmx.modes.scale',
    'fits a power law to runs of several sizes, predicts larger ones',
    ('--run', '--output'),
  ),
  'sweep': Mode(
    'bmx.modes.sweep', 'searches words given as log(a,b), int(a,b), choice(x,y)', ('--trials',)
  ),
}


@dataclasses.dataclass(frozen=True)
class Request:
  """A command: the config and the flags beside it.

  Attributes:
    config: the config, after overrides; None where a mode needs none: `config`, `compare`, `scale`;
      the shared words alone for `anonymize`.
    name: name of the run, for its default folder.
    workdir: run directory; '' where none was given.
    step: checkpoint to read: 'latest', 'best' or a step.
    input: file to predict, or of prompts.
    output: file of predictions, whose suffix says its format; page of a comparison; run directory
      or folder to write.
    prompts: texts to continue.
    topology: devices to plan for, such as 'v5e:4x4', several with commas, or 'auto'.
    words: part of the names of the words to print; 'all' prints them all; '' adds an outline.
    runs: run directories to compare.
    trials: of a sweep.
    recipe: as the command names it; '' for a stored config.
    overrides: 'a.b=value' texts that the config follows.
    spaces: words that a sweep sets.
    pointer: file that names the served model.
    back: whether the pointer returns to what it named before.
    force: whether a run is promoted without a gate.
    budget: of a plan, such as '500usd', '24h' or '30kwh'; of dial, also '1e21flops'.
    began: when the command began, in seconds of `time.perf_counter`.
  """

  config: Any
  name: str
  workdir: str = ''
  step: str = 'latest'
  input: str = ''
  prompts: tuple[str, ...] = ()
  topology: str = ''
  words: str = ''
  runs: tuple[str, ...] = ()
  output: str = ''
  trials: int = 0
  recipe: str = ''
  overrides: tuple[str, ...] = ()
  spaces: tuple[Space, ...] = ()
  pointer: str = ''
  back: bool = False
  force: bool = False
  budget: str = ''
  began: float = dataclasses.field(default_factory=time.perf_counter)


def newest_run() -> str:
  """Names the newest run below ./runs, for messages; '' without one."""
  found = [p for depth in ('*', '*/*') for p in pathlib.Path('runs').glob(f'{depth}/config.json')]
  newest = max(found, key=lambda p: p.stat().st_mtime, default=None)
  return f' (the newest here: --workdir={newest.parent})' if newest else ''


def check_flags(mode: str, request: Request) -> None:
  """Raises InputError naming a flag that is set and that the mode does not read."""
  given = {
    '--step': request.step != 'latest',
    '--input': request.input,
    '--output': request.output,
    '--prompt': request.prompts,
    '--topology': request.topology,
    '--budget': request.budget,
    '--words': request.words,
    '--run': request.runs,
    '--trials': request.trials,
    '--back': request.back,
    '--force': request.force,
  }
  for flag, is_set in given.items():
    if is_set and flag not in MODES[mode].flags:
      readers = ', '.join(name for name, m in MODES.items() if flag in m.flags)
      steps = '; the number of updates is --config.steps' if flag == '--step' else ''
      raise InputError(f'{flag}: expected one of the modes that read it, {readers}{steps}')


def run(mode: str, request: Request) -> int:
  """Runs a mode of `MODES`; returns the exit code. Raises InputError, see `check_flags`."""
  check_flags(mode, request)
  return importlib.import_module(MODES[mode].module).run(request)
