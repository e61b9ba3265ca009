"""Mode `learn`: trains a challenger from a champion's weights, on original and captured data."""

import dataclasses
import logging

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.feedback import traffic
from bmx.feedback.learn import challenger
from bmx.modes import Request, train
from bmx.modes.feedback import LEARNED, need_input, read_examples
from bmx.modes.start import need_run
from bmx.runtime.storage import absolute, place
from bmx.train import datafile

log = logging.getLogger('bmx')


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
    traffic.write(output / LEARNED, learned, fields)
    log.info('captured   %d examples, %d with a label, %d to learn from, %d for the gate',
             len(found), len(known), len(learned), len(known) - len(learned))  # fmt: skip
  given = dataclasses.replace(request, config=recipes.from_plain(new), workdir=str(output))
  return train.run(dataclasses.replace(given, input='', output=''))
