"""Mode `learn`: trains a challenger from a champion's weights, on original and captured data."""

import dataclasses
import logging
from typing import Any

from bmx import config as recipes
from bmx.adapt import runs
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.feedback import pointer, traffic
from bmx.feedback.learn import challenger
from bmx.modes import Request, train
from bmx.modes.feedback import LEARNED, need_input, read_examples
from bmx.modes.start import need_run
from bmx.runtime.files import read_json, write_json
from bmx.runtime.storage import Place, absolute, place
from bmx.train import datafile

log = logging.getLogger('bmx')
ASKED = 'captured.json'  # beside the examples: where they are from


def run(request: Request) -> int:
  """Trains in --output, an ordinary run directory; the same command again resumes.

  Labels are corrections of users, else predictions that users found right. A part of the examples
  (`feedback.holdout`) is left for the gate.
  """
  need_run('learn', request)
  need_input('learn', request)
  if not request.output:
    raise InputError('--output: expected a run directory for the challenger; --output=DIR')
  config = recipes.plain(request.config)
  words = config['feedback']
  check_number('feedback.holdout', words['holdout'], at_least=0, below=1)
  champion, output = absolute(place(request.workdir)), absolute(place(request.output))
  stored = datafile.read(champion)
  if stored is None:
    raise InputError(f'--workdir={champion}: expected the directory of a run that has trained')
  if request.pointer:
    _check_newest(champion, request.pointer)
  asked = {'input': str(absolute(place(request.input))), 'holdout': words['holdout']}
  _check_same(output, asked)
  new = challenger(config, str(champion), str(output / LEARNED), words['share'])
  if not (output / LEARNED).is_file():
    found, fields = read_examples(config, request.input)
    known = traffic.labeled(found, stored.metadata.get('class_names', ()))
    learned = [e for e in known if not traffic.is_held_out(e, words['holdout'])]
    if not learned:
      raise InputError(
        f'--input={request.input}: expected labeled examples to learn from, found '
        f'{len(found)} examples, {len(known)} of them with a label; users correct answers at '
        '/v1/feedback'
      )
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / ASKED, asked)
    traffic.write(output / LEARNED, learned, fields)
    log.info('captured   %d examples, %d with a label, %d to learn from, %d for the gate',
             len(found), len(known), len(learned), len(known) - len(learned))  # fmt: skip
  given = dataclasses.replace(request, config=recipes.from_plain(new), workdir=str(output))
  return train.run(dataclasses.replace(given, input='', output=''))


def _check_newest(champion: Place, path: str) -> None:
  """Raises InputError if a pointer names another step than the newest, which `init.path` reads."""
  step, newest = pointer.read(path).target.step, runs.checkpoint(str(champion), 'latest')[0].name
  if str(step) != newest:
    raise InputError(
      f'{path} names step {step} of {champion}, whose newest is {newest}: expected that one, as '
      'a challenger starts from it; promote that one, or learn from the run without the pointer'
    )


def _check_same(output: Place, asked: dict[str, Any]) -> None:
  """Raises InputError if --output has learned from other examples."""
  if not (output / LEARNED).is_file():
    return
  try:
    former = dict(read_json(output / ASKED))
  except (OSError, ValueError, TypeError):
    former = {}
  if former != asked:
    raise InputError(
      f'--output={output}: has learned from --input={former.get("input", "?")} with '
      f'feedback.holdout={former.get("holdout", "?")}; name a new folder'
    )
