"""Command-line entry point: trains, evaluates and uses a model.

    python -m bmx.main --config=RECIPE[:VARIANT] [--config.WORD=VALUE ...] [--workdir=DIR] [FLAGS]

RECIPE is the name of one of bmx's recipes, such as gpt_char, or a file. Every word of the config
and every parameter of the parts it names can be set: --config.optimizer.weight_decay=0.1
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from bmx import arguments, modes
from bmx import config as recipes
from bmx.core import errors
from bmx.core.terminal import printable
from bmx.plan import topology
from bmx.runtime import console

# Equal on all processes.
SHARED_FLAGS = ('mode', 'step', 'input', 'output', 'prompt', 'topology', 'budget', 'allow')
FAILED_SECONDS = 5.0  # to reach the others, for a process that cannot start


def main(argv: list[str] | None = None, program: str = 'python -m bmx.main') -> int:
  """Runs a command; returns the exit code: 0 done, 2 bad input, others in bmx.core.errors."""
  if argv is None:
    return at_terminal(lambda: main(sys.argv[1:], program))
  args, overrides = arguments.parse(argv, program)
  try:
    _follow_pointer(args)
    _choose_platform(args.mode)
    if not 0 <= args.process < args.processes:
      raise errors.InputError(
        f'--processes={args.processes} --process={args.process}: expected 0 <= process < processes'
      )
    if args.processes > 1:
      return _run_among_peers(args, overrides)
    code = modes.run(args.mode, _request(args, overrides))
    if args.workdir:
      _keep_library_lines(args.workdir)
    return code
  except errors.Stop as stop:
    sys.stderr.write(_last_words(stop))
    return stop.code
  except OSError as error:
    if error.errno not in errors.DISK:
      raise
    sys.stderr.write(_last_words(error))
    return errors.FAILURE
  except KeyboardInterrupt:
    lost = ': steps since the last checkpoint are lost' if args.mode == 'train' else ''
    sys.stderr.write(f'interrupted{lost}\n')
    os._exit(errors.INTERRUPTED)  # a thread that hangs would keep the interpreter


def at_terminal(run: Callable[[], int]) -> int:
  """Runs a command with a terminal that is free of the log lines of libraries."""
  console.start()
  try:
    code = run()
    console.finish(done=code != errors.FAILURE)
  except BrokenPipeError:  # the reader of a pipe has seen enough: `bmx config | head`
    os._exit(128 + signal.SIGPIPE)  # as a shell calls it
  return code


def _last_words(error: Exception) -> str:
  """What the terminal shows of an error: a message, or a traceback where bmx is at fault."""
  if isinstance(error, errors.Stop):
    text = f'{"error: " if error.code == errors.BAD_INPUT else ""}{error}'
  elif isinstance(error, OSError) and error.errno in errors.DISK:
    text = (
      f'error: {error}; free space, and give the same command again: a run resumes from its newest '
      'checkpoint'
    )
  else:
    text = ''.join(traceback.format_exception(error))
  return printable(text) + '\n'


def _request(args: argparse.Namespace, overrides: list[str]) -> modes.Request:
  recipes.trust(args.allow)
  spaces: list[Any] = []
  if args.mode == 'sweep':
    overrides, spaces = recipes.split(overrides)
  if not args.config and not args.workdir:
    config, name = (_shared(overrides) if args.mode == 'anonymize' else None), ''
  elif args.config:
    config, name = recipes.load(args.config, overrides)
  elif args.mode == 'predict' and _holds_whisper(args.workdir):
    from bmx.modes import pretrained

    config, name = pretrained.config_of(args.workdir, overrides)
    args.workdir = ''  # predictions of a folder of others are written beside other runs
  else:
    config, name = _stored(args.workdir, overrides)
  return modes.Request(
    config,
    name,
    workdir=args.workdir,
    step=args.step,
    input=args.input,
    output=args.output,
    prompts=tuple(args.prompt),
    topology=args.topology,
    budget=args.budget,
    words=args.words,
    runs=tuple(args.run),
    trials=args.trials,
    recipe=args.config,
    overrides=tuple(overrides),
    spaces=tuple(spaces),
    pointer=args.pointer,
    back=args.back,
    force=args.force,
  )


def _follow_pointer(args: argparse.Namespace) -> None:
  """Replaces a --workdir that is a pointer by the run and the step that it names."""
  reads_step = '--step' in modes.MODES[args.mode].flags
  if (
    not os.path.isfile(args.workdir)
    or args.mode == 'promote'
    or not (reads_step or args.mode == 'learn')
  ):
    return
  from bmx.feedback import pointer

  target = pointer.read(args.workdir).target
  pointer.check(target)
  if args.mode == 'serve' and args.step != 'latest':
    raise errors.InputError(
      f'--step={args.step}: expected none, as {args.workdir} names step {target.step}, which is '
      'served as long as it does; promote another, or serve the run'
    )
  args.pointer, args.workdir = args.workdir, target.run
  if reads_step and args.step == 'latest':
    args.step = str(target.step)


def _keep_library_lines(workdir: str) -> None:
  """Keeps lines of libraries in the logs of a run that is there."""
  from bmx.runtime import storage

  found = storage.place(workdir)
  if (found / 'config.json').is_file():
    console.keep(found / 'logs')


def _run_among_peers(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs as one of several processes; ends if another process is lost."""
  if not args.workdir:
    raise errors.InputError(f'--processes={args.processes} needs --workdir, the same for all')
  try:
    request = _request(args, overrides)
  except errors.InputError as error:
    with contextlib.suppress(errors.Stop):  # the others learn why this process does not start
      _start_peers(args, {}, str(error), timeout=FAILED_SECONDS)
    raise
  watch = _start_peers(args, _facts(args, request))
  try:
    code = modes.run(args.mode, request)
  except (errors.Preempted, errors.GuardStop):  # all processes stop so, at one step
    watch.goodbye()
    raise
  except errors.InputError as error:
    watch.fail(str(error), _last_words(error), error.code)
  except Exception as error:
    watch.await_verdict()
    watch.fail(f'{type(error).__name__}: {error}', _last_words(error), errors.FAILURE)
  watch.goodbye()
  return code


def _start_peers(
  args: argparse.Namespace, facts: dict[str, str], failure: str = '', timeout: float = 60.0
) -> Any:
  from bmx.runtime import peers, storage

  workdir = storage.place(args.workdir)
  where = args.coordinator, args.processes, args.process
  return peers.start(*where, workdir, facts, failure, timeout)


def _facts(args: argparse.Namespace, request: modes.Request) -> dict[str, str]:
  """What all processes must share, as far as it is known before jax starts."""
  from bmx.runtime import facts
  from bmx.train.rundir import flatten

  flags = {k: v for k, v in vars(args).items() if k in SHARED_FLAGS}
  return facts.facts(flatten(recipes.plain(request.config)), flags)


def _choose_platform(mode: str) -> None:
  """Selects the CPU on a machine without accelerators, and for exports.

  Otherwise jax asks the compilers of the extra `aot` for devices, and they print pages of errors.
  """
  if mode in ('plan', 'dial'):
    topology.prepare()
    return
  if mode == 'export':  # its check compares programs, and accelerators round products
    os.environ['JAX_PLATFORMS'] = 'cpu'
    return
  nodes = [*pathlib.Path('/dev').glob('nvidia*'), *pathlib.Path('/dev').glob('accel*')]
  nodes += pathlib.Path('/dev').glob('vfio/*')
  aot = any(importlib.util.find_spec(name) for name in ('libtpu', 'jax_cuda12_plugin'))
  if aot and not nodes and sys.platform == 'linux':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def _shared(overrides: list[str]) -> Any:
  """The words that every recipe shares."""
  config = recipes.base()
  recipes.apply(config, overrides)
  return config


def _holds_whisper(folder: str) -> bool:
  """Whether a folder is a Whisper of Hugging Face, and not a run."""
  from bmx.adapt import audio
  from bmx.runtime import storage

  return audio.is_whisper(storage.place(folder))


def _stored(workdir: str, overrides: list[str]) -> tuple[Any, str]:
  """The config of a run and its name."""
  from bmx.runtime import storage
  from bmx.train.rundir import read_config

  stored = read_config(storage.place(workdir))
  config = recipes.from_stored(stored['config'])
  recipes.apply(config, overrides)
  return config, stored.get('name', 'run')


if __name__ == '__main__':
  sys.exit(main())
