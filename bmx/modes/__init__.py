"""Modes of the command line: one module each, listed in `MODES`. Imports no jax."""

import dataclasses
import importlib
from typing import Any, NamedTuple


class Mode(NamedTuple):
  """A mode: `module` defines `run(request) -> exit code`."""

  module: str
  description: str


MODES = {
  'train': Mode('bmx.modes.train', 'trains; the same --workdir resumes'),
  'eval': Mode('bmx.modes.evaluate', 'evaluates a checkpoint on every `eval` entry'),
  'predict': Mode('bmx.modes.predict', 'writes predictions of --input or of the test set'),
  'generate': Mode('bmx.modes.generate', 'continues each --prompt or each line of --input'),
  'plan': Mode('bmx.modes.plan', 'compiles the training step for --topology; runs nothing'),
}


@dataclasses.dataclass(frozen=True)
class Request:
  """A command: the config and the flags beside it.

  Attributes:
    config: the config, after overrides.
    name: name of the run, for its default folder.
    workdir: run directory; '' where none was given.
    step: checkpoint to read: 'latest', 'best' or a step.
    input: file to predict, or of prompts.
    prompts: texts to continue.
    topology: devices to plan for, such as 'v5e:4x4'.
  """

  config: Any
  name: str
  workdir: str = ''
  step: str = 'latest'
  input: str = ''
  prompts: tuple[str, ...] = ()
  topology: str = ''


def run(mode: str, request: Request) -> int:
  """Runs a mode of `MODES`; returns the exit code."""
  return importlib.import_module(MODES[mode].module).run(request)
