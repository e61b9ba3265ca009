"""Mode `chat`: a conversation on the terminal, or with lines of a pipe."""

import dataclasses
import logging
import sys
from collections.abc import Mapping
from typing import Any

from bmx.core import errors
from bmx.core.terminal import printable
from bmx.core.types import facts_of
from bmx.data.text import chat_template as templates
from bmx.data.text.chat_template import ChatTemplate
from bmx.data.text.tokenizer import Tokenizer
from bmx.modes import Request
from bmx.modes.decoder import (
  decoder_of,
  ends_of,
  load_draft,
  load_tokenizer,
  load_weights,
  log_speed,
)
from bmx.modes.start import open_weights
from bmx.runtime.storage import Place
from bmx.serve.chat import Chat, end_of_turn
from bmx.serve.generate import GenerationStats
from bmx.serve.text import Options, TextGenerator

log = logging.getLogger('bmx')
HELP = '/reset begins a new conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer'


def run(request: Request) -> int:
  """Answers each line of the standard input, and remembers the conversation."""
  opened = open_weights('chat', request)
  x, folder = opened.experiment, opened.folder
  options, model = Options(**x.generate), decoder_of(x)
  if options.num_beams > 1:
    raise errors.InputError(
      f'generate.num_beams={options.num_beams}: expected 1, as answers are shown while they are '
      'generated'
    )
  coder = load_tokenizer(x, folder, opened.known)
  template = find_template(options.template, coder, folder, opened.known)
  end = end_of_turn(template, coder)
  options = dataclasses.replace(options, stop=(*options.stop, *([end] if end else [])))
  variables = load_weights(opened)
  ends = ends_of(x, folder, coder)
  generator = TextGenerator(model, layout=x.layout, tokenizer=coder, options=options, ends=ends,
                            draft=load_draft(opened, options), **variables)  # fmt: skip
  del variables  # the generator has its own
  log.info('chat       with %s, template %s: %s', folder, template.source, HELP)
  stats = GenerationStats()
  Terminal(Chat(generator, template, x.seed), stats).talk()
  log_speed(stats)
  return errors.DONE


def find_template(
  name: str, tokenizer: Tokenizer, folder: Place, state: Mapping[str, Any]
) -> ChatTemplate:
  """Returns the template that `generate.template` names, else that of the tokenizer or the folder.

  Args:
    name: the config word.
    tokenizer: of the model.
    folder: of a run or of weights.
    state: of the run's data.

  Raises:
    InputError: no template is there, or the file of a run differs from the one of its training.
  """
  if name:
    return ChatTemplate(templates.find(name), tokenizer.names, name)
  there = templates.read(folder)
  trained = state.get('chat_template', '')
  if trained and there and there != trained:
    raise errors.InputError(
      f'{folder / templates.NAME}: expected the template that the run trained with, as data.json '
      f'holds it; name this one with --config.generate.template={folder / templates.NAME}'
    )
  text = trained or there or tokenizer.chat_template
  if not text:
    raise errors.InputError(
      f'{folder} has no chat template: expected a model of conversations (bmx train chat); give '
      '--config.generate.template=chatml, a file or a folder for another'
    )
  return ChatTemplate(text, tokenizer.names, 'of the model')


class Terminal:
  """Lines in, answers out: notes are logged, so that the standard output holds answers only.

  Args:
    chat: the conversation.
    stats: is added to.
  """

  def __init__(self, chat: Chat, stats: GenerationStats):
    self.chat, self.stats = chat, stats
    self.terminal = sys.stdin.isatty()
    self.shown = printable if sys.stdout.isatty() else str

  def talk(self) -> None:
    """Answers until the input ends or /quit."""
    while (line := self._read()) is not None:
      line = line.strip()
      if line == '/quit':
        return
      if line == '/reset':
        self.chat.reset()
        log.info('a new conversation')
      elif line.startswith('/'):
        log.info('%s: expected /reset or /quit; %s', line.split()[0], HELP)
      elif line:
        self._answer(line)

  def _read(self) -> str | None:
    """Returns the next line; None at the end of the input."""
    while True:
      if self.terminal:
        sys.stdout.write('> ')
        sys.stdout.flush()
      try:
        line = sys.stdin.readline()
      except UnicodeDecodeError as error:
        raise errors.InputError(f'standard input: expected UTF-8: {error}') from None
      except KeyboardInterrupt:
        if not self.terminal:
          raise
        log.info('')
        log.info('%s', HELP)
        continue
      if not line and self.terminal:
        sys.stdout.write('\n')
      return line or None

  def _answer(self, line: str) -> None:
    """Prints the answer while it is generated; Ctrl-C stops it only.

    A terminal gets no control characters: weights of others may generate anything.
    """
    former, said = self.chat.dropped, False
    parts = self.chat.answer(line, self.stats)
    try:
      for part in parts:
        said = said or bool(part)
        sys.stdout.write(self.shown(part))
        sys.stdout.flush()
    except errors.InputError as error:
      log.info('%s', error)
      return
    except KeyboardInterrupt:
      parts.close()
      log.info(' (stopped)')
    sys.stdout.write('\n')
    sys.stdout.flush()
    if not said:
      log.info('(an empty answer)')
    if self.chat.dropped and not former:
      log.info(
        'the conversation is longer than the %d positions of the model: its oldest messages are '
        'left out from here on', facts_of(self.chat.generator.model).max_seq_len,
      )  # fmt: skip
