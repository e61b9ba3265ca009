"""Console script `bmx`, the short form of `python -m bmx.main`.

`bmx train gpt_char --batch_size=32` is
`python -m bmx.main --mode=train --config=gpt_char --config.batch_size=32`.
"""

import sys

from bmx import main as entry
from bmx import modes

USAGE = """usage: bmx MODE [RECIPE[:VARIANT]] [--WORD=VALUE ...]

MODE is {modes}; RECIPE is a name such as gpt_char or a file. WORD is a word of the config
(--batch_size=32, --task.model.depth=8) or one of the flags below.

"""


def translate(arguments: list[str]) -> list[str]:
  """Arguments of `bmx` as arguments of `bmx.main`.

  >>> translate(['train', 'gpt_char:tiny', '--batch_size=32', '--workdir=runs/a'])
  ['--mode=train', '--config=gpt_char:tiny', '--config.batch_size=32', '--workdir=runs/a']
  """
  result, rest = [], list(arguments)
  if rest and not rest[0].startswith('-'):
    result.append(f'--mode={rest.pop(0)}')
    if rest and not rest[0].startswith('-'):
      result.append(f'--config={rest.pop(0)}')
  for argument in rest:
    name = argument.removeprefix('--').partition('=')[0]
    word = argument.startswith('--') and name and name not in entry.FLAGS
    if word and not name.startswith('config.'):
      argument = f'--config.{argument.removeprefix("--")}'
    result.append(argument)
  return result


def main(argv: list[str] | None = None) -> int:
  """Runs a mode; returns the exit code as `bmx.main.main` does."""
  arguments = sys.argv[1:] if argv is None else argv
  if not arguments or '--help' in arguments or '-h' in arguments:
    sys.stdout.write(USAGE.format(modes=', '.join(modes.MODES)))
    arguments = ['--help']
  return entry.main(translate(arguments), 'bmx')
