"""Prompts to texts: a generator behind a tokenizer."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.core.types import Variables
from bmx.data.tokenizer import Tokenizer
from bmx.parallel import Layout
from bmx.serve.beam import beam_search
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
    Sampling(self.temperature, self.top_k, self.top_p, self.penalty)


class Writer:
  """Texts from one model."""

  def __init__(
    self, model: Any, params: Variables, layout: Layout, tokenizer: Tokenizer, options: Options
  ):
    if tokenizer.size > model.vocab:
      raise InputError(
        f'the tokenizer has {tokenizer.size} ids, the model a vocabulary of {model.vocab}: it is '
        "not this model's tokenizer"
      )
    self.model, self.params = decoder(model, params, layout)
    self.layout, self.tokenizer, self.options = layout, tokenizer, options
    self.end = tokenizer.special.get('eos', -1)
    o = options
    how = Sampling(o.temperature, o.top_k, o.top_p, o.penalty)
    chunk = min(STREAM if o.stream else WHOLE, o.tokens)
    self.generator = Generator(self.model, self.params, layout, how, chunk, self.end)

  def stream(
    self, prompts: Sequence[str], seed: int = 0, report: Report | None = None
  ) -> Iterator[list[str]]:
    """What each prompt's text goes on with, piece by piece; the pieces of a row together are its
    text, which ends before the first of `stop`."""
    ids = self._encode(prompts)
    tokens = self._room(ids)
    if self.options.beams > 1:
      yield self._beams(ids, tokens)
      return
    pieces = [Pieces(self.tokenizer, self.options.stop) for _ in prompts]
    for made, stop in self.generator.stream(ids, tokens, seed, report):
      told = [[i for i in row if i >= 0 and i != self.end] for row in made]
      new = [p.add(row) for p, row in zip(pieces, told, strict=True)]
      stop([n for n, p in enumerate(pieces) if p.stopped])
      yield new
    yield [p.rest() for p in pieces]

  def write(self, prompts: Sequence[str], seed: int = 0, report: Report | None = None) -> list[str]:
    """What each prompt's text goes on with."""
    return [''.join(parts) for parts in zip(*self.stream(prompts, seed, report), strict=True)]

  def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
    begin = self.tokenizer.special.get('bos')
    first = [] if begin is None else [begin]
    ids = [first + i.tolist() for i in self.tokenizer.encode(prompts)]
    if any(not i for i in ids):
      raise InputError('the prompt is empty: generation begins with a token; give --prompt=TEXT')
    return ids

  def _room(self, ids: Sequence[Sequence[int]]) -> int:
    """Tokens to make: as many as are asked for, if the model's positions last."""
    longest, positions = max(map(len, ids)), self.model.length
    if longest >= positions:
      raise InputError(
        f'a prompt of {longest} tokens leaves no room in the {positions} positions of the model'
      )
    tokens = min(self.options.tokens, positions - longest)
    if tokens < self.options.tokens:
      log.info('making %d tokens: the model has %d positions', tokens, positions)
    return tokens

  def _beams(self, ids: Sequence[Sequence[int]], tokens: int) -> list[str]:
    o, found = self.options, []
    for prompt in ids:
      made, _ = beam_search(
        self.model, self.params, self.layout, [prompt], tokens, o.beams, self.end
      )
      piece = Pieces(self.tokenizer, o.stop)
      found.append(piece.add(made[0]) + piece.rest())
    return found


class Pieces:
  """Ids of one row to its text, as they come: whole characters only, up to a text that stops it."""

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
    self.tokenizer, self.stop = tokenizer, tuple(s for s in stop if s)
    self.ids: list[int] = []
    self.told, self.stopped = 0, False

  def add(self, ids: Sequence[int]) -> str:
    """-> the text that is certain by now and was not told before."""
    if self.stopped:
      return ''
    self.ids += [int(i) for i in ids]
    text = self.tokenizer.decode(self.ids)
    places = [place for place in (text.find(s) for s in self.stop) if place >= 0]
    if places:
      self.stopped = True
      return self._tell(text[: min(places)])
    return self._tell(text[: len(text) - self._uncertain(text)])

  def rest(self) -> str:
    """What was held back and is the end after all."""
    return '' if self.stopped else self._tell(self.tokenizer.decode(self.ids))

  def _tell(self, text: str) -> str:
    new, self.told = text[self.told :], max(self.told, len(text))
    return new

  def _uncertain(self, text: str) -> int:
    """Characters at the end that may become others, or the beginning of a stop."""
    held = len(text) - len(text.rstrip('\ufffd'))
    begun = [n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return max([held, *begun])
