"""Prompts to texts: a generator behind a tokenizer."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.core.types import Variables
from bmx.data.text.documents import whole
from bmx.data.text.tokenizer import Tokenizer, frame
from bmx.parallel import Layout
from bmx.serve.beam import BeamSearch
from bmx.serve.generate import Generator, Report, decoder
from bmx.serve.sample import Sampling

log = logging.getLogger('bmx')
STREAM, WHOLE = 4, 32  # tokens between two looks at the text, where somebody watches or not


@dataclasses.dataclass(frozen=True)
class Options:
  """The config's `generate`: see `bmx.config.base`."""

  tokens: int = 100
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  penalty: float = 1.0
  beams: int = 1
  stop: tuple[str, ...] = ()
  stream: bool = True

  def __post_init__(self):
    if self.tokens < 1 or self.beams < 1:
      raise InputError(f'generate: tokens={self.tokens} and beams={self.beams} are at least 1')
    if self.beams > 1 and self.penalty != 1:
      raise InputError(f'generate: penalty={self.penalty} is for drawing, not for beams')
    if not all(isinstance(s, str) and s for s in self.stop):
      raise InputError(f'generate.stop={self.stop!r}: expected texts, such as ("\\n\\n", "END")')
    Sampling(self.temperature, self.top_k, self.top_p, self.penalty)


class Writer:
  """Texts from one model."""

  def __init__(
    self, model: Any, params: Variables, layout: Layout, tokenizer: Tokenizer, options: Options
  ):
    if tokenizer.size > getattr(model, 'vocab_size', tokenizer.size):
      raise InputError(
        f'the tokenizer has {tokenizer.size} ids, the model a vocabulary of {model.vocab_size}: it '
        "is not this model's tokenizer"
      )
    model, params = decoder(model, params, layout)
    self.model, self.tokenizer, self.options, o = model, tokenizer, options, options
    how = Sampling(o.temperature, o.top_k, o.top_p, o.penalty)
    self.generator = Generator(model, params, layout, how, tokenizer.ends)
    self.search = BeamSearch(model, params, layout, o.beams, tokenizer.ends)

  def stream(
    self, prompts: Sequence[str], seed: int = 0, report: Report | None = None, row: int = 0
  ) -> Iterator[list[str]]:
    """What each prompt's text goes on with, piece by piece; the pieces of a row together are its
    text, which ends before the first of `stop`. row: number of the first prompt."""
    o = self.options
    ids = self._encode(prompts)
    pieces = [Pieces(self.tokenizer, o.stop, before) for before in ids]
    if o.beams > 1:
      made, _ = self.search(ids, o.tokens)
      yield [p.add(new) for p, new in zip(pieces, made, strict=True)]
      yield [p.rest() for p in pieces]
      return
    chunk = STREAM if o.stream and len(prompts) == 1 else WHOLE
    for made, stop in self.generator.stream(ids, o.tokens, seed, report, chunk, row):
      told = [[i for i in new if i >= 0 and i not in self.tokenizer.ends] for new in made]
      some = [p.add(new) for p, new in zip(pieces, told, strict=True)]
      stop([n for n, p in enumerate(pieces) if p.stopped])
      yield some
    yield [p.rest() for p in pieces]

  def write(
    self, prompts: Sequence[str], seed: int = 0, report: Report | None = None, row: int = 0
  ) -> list[str]:
    """What each prompt's text goes on with."""
    pieces = list(self.stream(prompts, seed, report, row))
    return [''.join(parts) for parts in zip(*pieces, strict=True)]

  def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
    """With what stands before a document in training. Raises InputError for a prompt without text,
    or with half a character."""
    prefix = list(frame(self.tokenizer.special).prefix)
    texts = [whole(prompt, f'prompt {n}') for n, prompt in enumerate(prompts, 1)]
    ids = [prefix + i.tolist() for i in self.tokenizer.encode(texts)]
    if not all(ids):
      raise InputError('the prompt is empty: generation begins with a token; give --prompt=TEXT')
    limit = self.model.max_seq_len
    short = sum(limit - self.options.tokens < len(i) < limit for i in ids)
    if short:
      log.info('%d of %d texts may end early: the model has %d positions', short, len(ids), limit)
    return ids


class Pieces:
  """Ids of one row to its text, as they come: whole characters only, up to a text that stops it.

  Args:
    before: ids of the prompt: what a token looks like depends on the one before it.
  """

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], before: Sequence[int] = ()):
    self.tokenizer, self.stop, self.ids = tokenizer, tuple(stop), list(before)
    self.start = len(tokenizer.decode(self.ids))
    self.told, self.stopped = 0, False

  def add(self, ids: Sequence[int]) -> str:
    """-> the text that is certain by now and was not told before."""
    if self.stopped:
      return ''
    self.ids += [int(i) for i in ids]
    text = self._text()
    places = [place for place in (text.find(s) for s in self.stop) if place >= 0]
    if places:
      self.stopped = True
      return self._tell(text[: min(places)])
    # The end may become another character, or be the beginning of a stop.
    sure = text.rstrip('\ufffd')
    begun = [n for s in self.stop for n in range(1, len(s)) if sure.endswith(s[:n])]
    return self._tell(sure[: len(sure) - max(begun, default=0)])

  def rest(self) -> str:
    """What was held back and is the end after all."""
    return '' if self.stopped else self._tell(self._text())

  def _text(self) -> str:
    return self.tokenizer.decode(self.ids)[self.start :]

  def _tell(self, text: str) -> str:
    new, self.told = text[self.told :], max(self.told, len(text))
    return new
