"""Console script `bmx`, the short form of `python -m bmx.main`.

`bmx train gpt_char --batch_size=32` is
`python -m bmx.main --mode=train --config=gpt_char --config.batch_size=32`.
"""

import os
import sys

from bmx import arguments as flags
from bmx import config as recipes
from bmx import main as entry
from bmx import modes

# Mode -> the group of words that need no prefix there.
GROUPS = {'compress': 'compress', 'export': 'export', 'serve': 'serve', 'drift': 'feedback',
          'learn': 'feedback', 'gate': 'feedback', 'predict': 'predict',
          'explain': 'explain', 'eval': 'reliability', 'card': 'export',
          'anonymize': 'anonymize'}  # fmt: skip
# Of `bmx compress`: --NAME is --compress.WORD=NAME.
SHORT = {
  'kind': ('int8', 'int4', 'nf4', 'fp8'),
  'method': ('gptq', 'awq', 'magnitude', 'wanda', 'shrink'),
}

PRUNING = ('magnitude', 'wanda', 'shrink')  # methods that read no kind


def translate(arguments: list[str]) -> list[str]:
  """Arguments of `bmx` as arguments of `bmx.main`.

  >>> translate(['train', 'gpt_char:tiny', '--batch_size=32', '--workdir=runs/a'])
  ['--mode=train', '--config=gpt_char:tiny', '--config.batch_size=32', '--workdir=runs/a']
  >>> translate(['config', 'gpt_char', 'optimizer'])
  ['--mode=config', '--config=gpt_char', '--words=optimizer']
  >>> translate(['eval', 'runs/a'])
  ['--mode=eval', '--workdir=runs/a']
  >>> translate(['eval', 'runs/a', '--slices=sex'])[2:]
  ['--config.reliability.slices=sex']
  >>> translate(['compress', 'runs/a', '--int4', '--group=64'])[1:]
  ['--workdir=runs/a', '--config.compress.kind=int4', '--config.compress.group=64']
  >>> translate(['serve', 'runs/a', '--port=80'])
  ['--mode=serve', '--workdir=runs/a', '--config.serve.port=80']
  >>> translate(['explain', 'runs/a', '--method=saliency'])[1:]
  ['--workdir=runs/a', '--config.explain.method=saliency']
  >>> translate(['anonymize', 'notes.txt', '--form=mask'])[1:]
  ['--input=notes.txt', '--config.anonymize.form=mask']
  >>> translate(['compare', 'runs/a', 'runs/b'])
  ['--mode=compare', '--run=runs/a', '--run=runs/b']
  >>> translate(['merge', 'runs/a', '--output=merged'])
  ['--mode=merge', '--workdir=runs/a', '--output=merged']
  >>> translate(['gate', 'runs/a', 'runs/b', '--input=new', '--margin=0.02'])[1:]
  ['--run=runs/a', '--workdir=runs/b', '--input=new', '--config.feedback.margin=0.02']
  >>> translate(['promote', 'served.json', 'runs/b', '--force'])
  ['--mode=promote', '--pointer=served.json', '--workdir=runs/b', '--force']
  """
  result, rest = [], list(arguments)
  if rest and not rest[0].startswith('-'):
    mode = rest.pop(0)
    result.append(f'--mode={mode}')
    while mode in ('compare', 'scale') and rest and not rest[0].startswith('-'):
      result.append(f'--run={rest.pop(0)}')
    if mode == 'gate' and len(rest) > 1 and not rest[1].startswith('-'):
      result.append(f'--run={rest.pop(0)}')
    if mode == 'promote' and rest and not rest[0].startswith('-'):
      result.append(f'--pointer={rest.pop(0)}')
    if mode == 'anonymize' and rest and not rest[0].startswith('-'):
      result.append(f'--input={rest.pop(0)}')
    if rest and not rest[0].startswith('-'):
      word = rest.pop(0)
      result.append(f'--workdir={word}' if _is_run(mode, word) else f'--config={word}')
    if mode == 'compress':
      _check_short(rest)
    if mode in GROUPS:
      rest = [_group_word(mode, argument) for argument in rest]
    if rest and mode == 'config' and not rest[0].startswith('-'):
      result.append(f'--words={rest.pop(0)}')
  for argument in rest:
    name = argument.removeprefix('--').partition('=')[0]
    word = argument.startswith('--') and name and name not in flags.FLAGS
    if word and not name.startswith('config.') and not _is_misspelt_flag(name):
      argument = f'--config.{argument.removeprefix("--")}'
    result.append(argument)
  return result


def _is_run(mode: str, word: str) -> bool:
  """Whether the word after a mode that reads a run is its directory, and not a recipe."""
  if '--step' not in modes.MODES.get(mode, modes.Mode('', '')).flags and mode != 'learn':
    return False
  name = word.partition(':')[0]
  recipe = name.endswith('.py') or name in recipes.names()
  return not recipe or os.path.isfile(os.path.join(word, 'config.json'))


def _group_word(mode: str, argument: str) -> str:
  """Writes a short form in full: --int4, --gptq, --group=64 of compress, --port=8000 of serve."""
  name, equals, value = argument.removeprefix('--').partition('=')
  for word, values in SHORT.items() if mode == 'compress' else ():
    if name in values and not equals:
      return f'--compress.{word}={name}'
  group = GROUPS[mode]
  if argument.startswith('--') and name in recipes.base()[group]:
    return f'--{group}.{name}{equals}{value}'
  return argument


def _check_short(arguments: list[str]) -> None:
  """Ends the command if two short forms set one word, of which the last alone would count."""
  for word, values in SHORT.items():
    found = [a for a in arguments if a.startswith('--') and a.removeprefix('--') in values]
    if len(set(found)) > 1:
      flags.refuse(
        'bmx',
        f'{" ".join(found)}: expected one value of compress.{word}; two methods are two commands, '
        'the second for the output of the first',
      )
  kinds, pruning = ([a for a in arguments if a.removeprefix('--') in names and a[:2] == '--']
                    for names in (SHORT['kind'], PRUNING))  # fmt: skip
  if kinds and pruning:
    flags.refuse(
      'bmx',
      f'{kinds[0]} {pruning[0]}: expected one of the two, as {pruning[0]} does not quantize; two '
      'methods are two commands, the second for the output of the first',
    )


def _is_misspelt_flag(name: str) -> bool:
  return '.' not in name and name not in recipes.base() and bool(flags.near_flag(name))


def main(argv: list[str] | None = None) -> int:
  """Runs a mode; returns the exit code as `bmx.main.main` does."""
  if argv is None:
    return entry.at_terminal(lambda: main(sys.argv[1:]))
  arguments = argv
  if not arguments or '--help' in arguments or '-h' in arguments:
    arguments = ['--help']
  first = arguments[0]
  if not first.startswith('-') and first not in modes.MODES:
    flags.refuse('bmx', _without_mode(first))
  return entry.main(translate(arguments), 'bmx')


def _without_mode(first: str) -> str:
  """The message for a command whose first word is not a mode."""
  name = first.partition(':')[0]
  if name in recipes.names() or name.endswith('.py'):
    return f'{first}: expected a mode first; bmx train {first}'
  return flags.unknown_mode(first)
