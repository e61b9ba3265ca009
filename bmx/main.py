"""Command-line entry point: trains, evaluates and uses a model.

    python -m bmx.main --config=RECIPE[:VARIANT] [--config.WORD=VALUE ...] [--workdir=DIR] [FLAGS]

RECIPE is the name of one of bmx's recipes, such as gpt_char, or a file. Every word of the config
and every parameter of the parts it names can be set: --config.optimizer.weight_decay=0.1
"""

import argparse
import contextlib
import difflib
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from bmx import config as recipes
from bmx import modes
from bmx.core import errors
from bmx.core.terminal import printable
from bmx.plan import topology
from bmx.runtime import console

FLAGS = (
  'config', 'workdir', 'mode', 'step', 'input', 'output', 'prompt', 'topology', 'words', 'run',
  'trials', 'allow',
  'processes', 'process', 'coordinator', 'help',
)  # fmt: skip
USAGE = {
  'bmx': 'usage: bmx MODE [RECIPE[:VARIANT]] [--WORD=VALUE ...] [--FLAG=VALUE ...]',
  'python -m bmx.main': 'usage: python -m bmx.main --config=RECIPE[:VARIANT] '
                        '[--config.WORD=VALUE ...] [--FLAG=VALUE ...]',
}  # fmt: skip

DESCRIPTIONS = {
  'bmx': """RECIPE is a name such as gpt_char, or a file. WORD is a word of the config
(--batch_size=32, --task.model.depth=8); FLAG is one of those below.

  bmx config                  the recipes
  bmx config gpt_char         the words of a recipe, and what it would build
  bmx train gpt_char:tiny     trains its smallest size
  bmx compare RUN RUN         compares runs""",
  'python -m bmx.main': __doc__,
}

# Equal on all processes.
SHARED_FLAGS = ('mode', 'step', 'input', 'output', 'prompt', 'topology', 'allow')
FAILED_SECONDS = 5.0  # to reach the others, for a process that cannot start


def main(argv: list[str] | None = None, program: str = 'python -m bmx.main') -> int:
  """Runs a command; returns the exit code: 0 done, 2 bad input, others in bmx.core.errors."""
  if argv is None:
    return at_terminal(lambda: main(sys.argv[1:], program))
  args, overrides = _parse(argv, program)
  try:
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
    sys.stderr.write('interrupted: steps since the last checkpoint are lost\n')
    os._exit(errors.INTERRUPTED)  # a thread that hangs would keep the interpreter


def at_terminal(run: Callable[[], int]) -> int:
  """Runs a command with a terminal that is free of the log lines of libraries."""
  console.start()
  code = run()
  console.finish(done=code != errors.FAILURE)
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


class _Parser(argparse.ArgumentParser):
  """A parser that answers a mistake below one usage line."""

  def error(self, message: str) -> NoReturn:
    refuse(self.prog, message)


def refuse(program: str, message: str) -> NoReturn:
  """Ends a command that cannot be read: one usage line, one error, exit code 2."""
  sys.stderr.write(f'{USAGE[program]}\nerror: {printable(message)}\n')
  raise SystemExit(errors.BAD_INPUT)


def _parse(argv: list[str], program: str) -> tuple[argparse.Namespace, list[str]]:
  described = '\n'.join(f'  {name:9} {mode.description}' for name, mode in modes.MODES.items())
  parser = _Parser(
    program, USAGE[program].removeprefix('usage: '),
    f'{DESCRIPTIONS[program]}\n\nmodes:\n{described}',
    allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--config', default='', help='recipe: NAME[:VARIANT] or '
                      'FILE.py[:VARIANT]; default: the config of --workdir')  # fmt: skip
  parser.add_argument('--workdir', default='', help='run directory; an existing one '
                      'resumes (default: runs/NAME/TIMESTAMP-RANDOM)')  # fmt: skip
  parser.add_argument('--mode', default='train', help='one of the modes above; default: train')
  parser.add_argument('--step', default='latest', help='checkpoint that eval, predict and generate '
                      'read: latest, best or a step')  # fmt: skip
  parser.add_argument('--input', default='', help='predict: file of examples (default: the '
                      'test set); generate: file of prompts, a line each, or .jsonl')  # fmt: skip
  parser.add_argument('--output', default='', help='predict: file to write, .jsonl, .csv or '
                      '.parquet (default: WORKDIR/predictions/INPUT.STEP.jsonl)')  # fmt: skip
  parser.add_argument('--prompt', action='append', default=[], help='text to continue; can be '
                      'repeated')  # fmt: skip
  parser.add_argument('--topology', default='', help='devices to plan for: v5e:4x4, v5e:4x4@2 '
                      '(two slices), h200:8')  # fmt: skip
  parser.add_argument('--words', nargs='?', default='', const='all', help='config: prints the '
                      'words alone, or those whose names contain a text')  # fmt: skip
  parser.add_argument('--run', action='append', default=[], metavar='DIR', help='compare: run '
                      'directory; can be repeated')  # fmt: skip
  parser.add_argument('--trials', type=int, default=0, help='sweep: trials of the whole sweep')
  parser.add_argument('--allow', action='append', default=[], metavar='PACKAGE', help='package '
                      'that a stored config may call besides bmx, optax and flax')  # fmt: skip
  several = parser.add_argument_group('several processes: one command each, with its own --process')
  several.add_argument('--processes', type=int, default=1)
  several.add_argument('--process', type=int, default=0, help='index of this process, from 0')
  several.add_argument('--coordinator', default='localhost:9871', help='HOST:PORT of process 0')
  args, rest = parser.parse_known_args(argv)
  overrides, rest = _overrides(rest)
  if rest:
    parser.error(_unknown(rest[0]))
  if args.mode not in modes.MODES:
    parser.error(unknown_mode(args.mode))
  needs_config = overrides or args.mode not in modes.WITHOUT_CONFIG
  if not args.config and not args.workdir and needs_config:
    parser.error(
      f'give --config=RECIPE, or --workdir=DIR of a run{modes.newest_run()}; `bmx config` lists '
      'the recipes'
    )
  return args, overrides


def unknown_mode(mode: str) -> str:
  """The message for a mode that does not exist."""
  known = ', '.join(modes.MODES)
  near = errors.did_you_mean(mode, modes.MODES).partition('; known')[0]
  return f'--mode={mode}: expected one of {known}{near}'


def near_flag(name: str) -> str:
  """The flag that a name probably misspells; '' if none is near."""
  return next(iter(difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.75)), '')


def _unknown(argument: str) -> str:
  """The message for an argument that is not a flag, with a way to write it."""
  name, equals, value = argument.lstrip('-').partition('=')
  flag = name if name in FLAGS else near_flag(name)
  if argument.startswith('-') and flag and name not in recipes.base():
    fix = f'did you mean --{flag}{equals}{value}?'
  elif name and equals:
    fix = f'the config is set by --config.{name}={value or "VALUE"}'
  elif argument == '=':
    fix = 'write --config.WORD=VALUE without blanks'
  else:
    fix = 'a variant is written RECIPE:VARIANT; the config is set by --config.WORD=VALUE'
  return f'unknown argument {argument!r}; {fix}'


def _overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
  """Splits arguments into overrides ('--config.a=1', or '--config.a', '1': 'a=1') and the rest."""
  found, rest = [], []
  for argument in arguments:
    if argument.startswith('--config.'):
      found.append(argument.removeprefix('--config.'))
    elif _is_value(argument) and found and '=' not in found[-1] and not rest:
      found[-1] += f'={argument}'
    else:
      rest.append(argument)
  return found, rest


def _is_value(argument: str) -> bool:
  return argument != '=' and not argument.startswith('--')


def _request(args: argparse.Namespace, overrides: list[str]) -> modes.Request:
  recipes.trust(args.allow)
  spaces: list[Any] = []
  if args.mode == 'sweep':
    overrides, spaces = recipes.split(overrides)
  if not args.config and not args.workdir:
    config, name = None, ''
  elif args.config:
    config, name = recipes.load(args.config, overrides)
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
    words=args.words,
    runs=tuple(args.run),
    trials=args.trials,
    recipe=args.config,
    overrides=tuple(overrides),
    spaces=tuple(spaces),
  )


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
  """Selects the CPU on a machine without accelerators.

  Otherwise jax asks the compilers of the extra `aot` for devices, and they print pages of errors.
  """
  if mode == 'plan':
    topology.prepare()
    return
  nodes = [*pathlib.Path('/dev').glob('nvidia*'), *pathlib.Path('/dev').glob('accel*')]
  nodes += pathlib.Path('/dev').glob('vfio/*')
  aot = any(importlib.util.find_spec(name) for name in ('libtpu', 'jax_cuda12_plugin'))
  if aot and not nodes and sys.platform == 'linux':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


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
