"""Arguments of the command line: flags, overrides, and messages for mistakes."""

import argparse
import difflib
import os
import sys
from typing import NoReturn

from bmx import config as recipes
from bmx import modes
from bmx.core import errors
from bmx.core.terminal import printable

FLAGS = (
  'config', 'workdir', 'mode', 'step', 'input', 'output', 'prompt', 'topology', 'budget', 'words',
  'run', 'trials', 'allow', 'pointer', 'back', 'force',
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
  bmx eval RUN                evaluates a run; so do predict, generate and chat
  bmx compare RUN RUN         compares runs""",
  'python -m bmx.main': """RECIPE is the name of one of bmx's recipes, such as gpt_char, or a file.
Every word of the config and every parameter of the parts it names can be set:
--config.optimizer.weight_decay=0.1""",
}


class _Parser(argparse.ArgumentParser):
  """A parser that answers a mistake below one usage line."""

  def error(self, message: str) -> NoReturn:
    refuse(self.prog, message)


def refuse(program: str, message: str) -> NoReturn:
  """Ends a command that cannot be read: one usage line, one error, exit code 2."""
  sys.stderr.write(f'{USAGE[program]}\nerror: {printable(message)}\n')
  raise SystemExit(errors.BAD_INPUT)


def parse(argv: list[str], program: str) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags of a command, and the overrides of its config.

  Ends the command with exit code 2 if it cannot be read, see `refuse`.

  Args:
    argv: the arguments.
    program: one of `USAGE`.
  """
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
  parser.add_argument('--step', default='latest', help='checkpoint that eval, predict, generate, '
                      'chat and compress read: latest, best or a step')  # fmt: skip
  parser.add_argument('--input', default='', help='predict, explain: file of examples '
                      '(default: the test set); generate: file of prompts, a line each, or '
                      '.jsonl; drift, learn, gate: folder that a server has captured, or '
                      'file of examples; anonymize: text or table')  # fmt: skip
  parser.add_argument('--output', default='', help='predict: file to write, .jsonl, .csv or '
                      '.parquet (default: WORKDIR/predictions/INPUT.STEP.jsonl); compare: '
                      'page to write (default: compare.html); scale: file (scale.json); compress, '
                      'learn: run directory to write; merge: folder to write; drift, explain: '
                      'page to write; plan, dial: folder to write (plans/NAME, '
                      'dials/NAME); anonymize: file to write (NAME.anonymized.SUFFIX)')  # fmt: skip
  parser.add_argument('--prompt', action='append', default=[], help='text to continue; can be '
                      'repeated')  # fmt: skip
  parser.add_argument('--topology', default='', help='devices to plan for: v5e:4x4, v5e:4x4@2 '
                      '(two slices), h200:8; several with commas; auto, with --budget')  # fmt: skip
  parser.add_argument('--budget', default='', help='plan, dial: 500usd, 24h or 30kwh; '
                      'dial: 1e21flops')  # fmt: skip
  parser.add_argument('--words', nargs='?', default='', const='all', help='config: prints the '
                      'words alone, or those whose names contain a text')  # fmt: skip
  parser.add_argument('--run', action='append', default=[], metavar='DIR', help='compare, scale: '
                      'run directory; can be repeated; gate: the champion')  # fmt: skip
  parser.add_argument('--pointer', default='', metavar='FILE', help='promote: file that names the '
                      'served model')  # fmt: skip
  parser.add_argument('--back', action='store_true', help='promote: returns to the model before')
  parser.add_argument('--force', action='store_true', help='promote: without a gate')
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
  needs_config = args.mode not in modes.WITHOUT_CONFIG or (overrides and args.mode != 'anonymize')
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
  elif os.path.isfile(argument):
    fix = (
      f'a file of data is given as --config.data.path={argument}; to predict it, --input={argument}'
    )
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
