"""Text generation: a token generator with a tokenizer before and after it."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Facts, Variables, facts_of
from bmx.data.text.documents import whole
from bmx.data.text.tokenizer import Tokenizer, frame
from bmx.models.seq2seq import EncoderDecoder
from bmx.parallel import Layout
from bmx.serve.beam import BeamSearch
from bmx.serve.decode import (
  Inputs,
  SlotDecoder,
  check_prompts,
  decoding_form,
  decoding_variables,
  prompt_names,
)
from bmx.serve.detokenizer import Detokenizer
from bmx.serve.generate import GenerationStats, Generator
from bmx.serve.sample import Sampling
from bmx.serve.sources import encode_sources, padded_sources
from bmx.serve.speculate import Draft
from bmx.serve.stream import SlotGenerator

log = logging.getLogger('bmx')

TextInputs = Sequence[str] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """The config word `generate`, see `bmx.config.base`.

  Raises:
    InputError: a value is out of range, or two exclude each other.
  """

  max_new_tokens: int = 100
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  num_beams: int = 1
  length_penalty: float = 1.0
  stop: tuple[str, ...] = ()
  stream: bool = True
  slide: float = 0.5
  cache: str = 'auto'
  template: str = ''
  draft: str = ''
  draft_tokens: int = 4

  def __post_init__(self):
    if self.cache not in ('auto', 'int8'):
      raise InputError(f"generate.cache={self.cache!r}: expected 'auto' or 'int8'")
    for name in ('max_new_tokens', 'num_beams', 'draft_tokens'):
      value = dataclasses.asdict(self)[name]
      if value < 1:
        raise InputError(f'generate.{name}={value}: expected {name} >= 1')
    check_number('generate.length_penalty', self.length_penalty)
    if self.num_beams > 1 and self.repetition_penalty != 1:
      raise InputError(
        f'generate.repetition_penalty={self.repetition_penalty}: expected 1 with beams; set '
        'generate.num_beams=1'
      )
    if not all(isinstance(s, str) and s for s in self.stop):
      raise InputError(
        f'generate.stop={self.stop!r}: expected non-empty texts, such as ("\\n\\n", "END")'
      )
    self.sampling  # noqa: B018 (checks the others)
    for name, value, exact in (
      ('temperature', self.temperature, 0),
      ('repetition_penalty', self.repetition_penalty, 1),
      ('num_beams', self.num_beams, 1),
    ):
      if self.draft and value != exact:
        raise InputError(f'generate.{name}={value}: expected {exact} with generate.draft='
                         f'{self.draft}, which changes no greedy text')  # fmt: skip

  @property
  def sampling(self) -> Sampling:
    """How tokens are drawn."""
    return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)


class TextGenerator:
  """Generates texts with one model.

  Args:
    model: a decoder, in the form that trains.
    params: its plain weights.
    layout: mesh and rules.
    tokenizer: of the model.
    options: the config word `generate`.
    ends: ids that end a text; the tokenizer's by default.
    quantized: kernels that `params` lacks, see `decode.decoder`.
    draft: proposes tokens, of the same tokenizer; see `speculate`.

  Raises:
    InputError: the model cannot generate, or the tokenizer has more ids than the model; a draft
      beside a model without `slot_cache`.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    tokenizer: Tokenizer,
    options: Options,
    ends: Sequence[int] = (),
    quantized: Variables | None = None,
    draft: Draft | None = None,
  ):
    check_size(tokenizer, facts_of(model))
    model, self.convert = decoding_form(model, layout, options.cache)
    params = self.convert(decoding_variables(params, quantized))
    self.model, self.tokenizer, self.options = model, tokenizer, options
    self.begin = list(frame(tokenizer).prefix)
    if isinstance(model, EncoderDecoder):
      self.begin = list(model.begin)
    self.reads_source = isinstance(model, EncoderDecoder) and model.reads_text
    self.ends = *(ends or tokenizer.ends), *stop_ids(tokenizer, options.stop)
    ends, begin = self.ends, self.begin
    given = model, params, layout, options.sampling, ends, begin
    self.generator: Generator | SlotGenerator = Generator(*given)
    if isinstance(model, SlotDecoder):
      self.generator = SlotGenerator(*given, options.slide, draft)
    elif draft is not None:
      raise InputError(f'generate.draft={options.draft}: expected none, as {type(model).__name__} '
                       'has a cache of its own')  # fmt: skip
    self.search = BeamSearch(
      model, params, layout, options.num_beams, ends, options.length_penalty, begin
    )

  def load(self, params: Variables, quantized: Variables | None = None) -> None:
    """Replaces the weights by others of the model; compiled programs are kept."""
    variables = self.convert(decoding_variables(params, quantized))
    self.generator.params = self.search.params = variables

  def release(self) -> None:
    """Drops the weights, so that their memory is free until the next `load`."""
    self.generator.params = self.search.params = {}

  def check(self, prompts: Sequence[str], names: Sequence[str]) -> None:
    """Raises InputError with the name of a prompt that cannot be continued; see `stream`."""
    encode = encode_sources if self.reads_source else encode_prompts
    encode(prompts, self.tokenizer, facts_of(self.model), names)

  def shown(self, prompt: str, text: str) -> str:
    """Returns a text with the prompt that it continues; the text alone if it answers a source."""
    return text if self.reads_source else prompt + text

  def stream(
    self,
    inputs: TextInputs,
    seed: int = 0,
    stats: GenerationStats | None = None,
    row: int = 0,
  ) -> Iterator[list[str]]:
    """Yields the next part of every row's text; a text ends before the first of `options.stop`.

    Args:
      inputs: prompts that the texts continue, or the sources of an encoder-decoder; or a mapping of
        arrays [B, ...] that the model's `prefill` reads, with prompts under 'tokens' or without
        (then each text starts with the begin-of-sequence token).
      seed: of the draws.
      stats: is added to.
      row: number of the first row.

    Raises:
      InputError: a prompt is empty, too long, or not valid Unicode.
    """
    yield from self.continued(self._encode(inputs, row), seed, stats, row)

  def continued(
    self,
    encoded: Inputs,
    seed: int = 0,
    stats: GenerationStats | None = None,
    row: int = 0,
  ) -> Iterator[list[str]]:
    """Yields texts as `stream` does, for prompts that are token ids: nothing is added to them."""
    options = self.options
    if isinstance(encoded, Mapping):
      before = [self.begin] * _rows(encoded) if 'tokens' not in encoded else encoded['tokens']
    else:
      before = encoded
    texts = [Detokenizer(self.tokenizer, options.stop, ids) for ids in before]
    if options.num_beams > 1:
      new, _ = self.search(encoded, options.max_new_tokens)
      yield [t.add(ids) for t, ids in zip(texts, new, strict=True)]
      yield [t.flush() for t in texts]
      return
    for new, stop in self.generator.stream(encoded, options.max_new_tokens, seed, stats, row=row):
      kept = [[i for i in ids if i >= 0 and i not in self.ends] for ids in new]
      parts = [t.add(ids) for t, ids in zip(texts, kept, strict=True)]
      stop([n for n, t in enumerate(texts) if t.stopped])
      yield parts
    yield [t.flush() for t in texts]

  def generate(
    self,
    inputs: TextInputs,
    seed: int = 0,
    stats: GenerationStats | None = None,
    row: int = 0,
  ) -> list[str]:
    """Returns the new text of each row; the arguments are those of `stream`."""
    parts = list(self.stream(inputs, seed, stats, row))
    return [''.join(row) for row in zip(*parts, strict=True)]

  def _encode(self, inputs: TextInputs, row: int) -> Inputs:
    """Encodes prompts, with the tokens that precede a document in training."""
    if isinstance(inputs, Mapping):
      prompts = inputs.get('tokens')
      return dict(inputs) if prompts is None else {**inputs, 'tokens': self._ids(prompts, row)}
    if self.reads_source:
      names, facts = prompt_names(len(inputs), row), facts_of(self.model)
      ids = encode_sources(inputs, self.tokenizer, facts, names)
      return padded_sources(ids, facts.max_source_len)
    return self._ids(inputs, row)

  def _ids(self, prompts: Sequence[str], row: int = 0) -> list[list[int]]:
    facts = facts_of(self.model)
    ids = encode_prompts(prompts, self.tokenizer, facts, prompt_names(len(prompts), row))
    limit = facts.max_seq_len
    short = sum(limit - self.options.max_new_tokens < len(i) < limit for i in ids)
    if short:
      self._note_limit(short, len(ids), limit)
    return ids

  def _note_limit(self, short: int, count: int, limit: int) -> None:
    """Logs what happens to texts that may need more than the model's positions."""
    generator = self.generator
    slide = generator.slide if isinstance(generator, SlotGenerator) else None
    if slide is None:
      log.info('%d of %d texts may end early: the model has %d positions', short, count, limit)
      return
    if self.options.num_beams > 1:
      raise InputError(
        f'generate.slide={self.options.slide}: expected 0 with num_beams='
        f'{self.options.num_beams}, as {short} of {count} texts may need more than the '
        f'max_seq_len={limit} positions of the model; set generate.slide=0 to end texts there, or '
        'generate.num_beams=1'
      )
    log.info(
      '%d of %d texts may need more than the %d positions of the model: each continues from its '
      'newest %d tokens then (generate.slide)', short, count, limit, slide.keep,
    )  # fmt: skip


def check_size(tokenizer: Tokenizer, facts: Facts) -> None:
  """Raises InputError if a tokenizer has more ids than a model."""
  if facts.vocab_size and tokenizer.size > facts.vocab_size:
    raise InputError(
      f'the tokenizer has {tokenizer.size} ids: expected at most vocab_size={facts.vocab_size} of '
      "the model; use the model's own tokenizer"
    )


def encode_prompts(
  prompts: Sequence[str], tokenizer: Tokenizer, facts: Facts, names: Sequence[str]
) -> list[list[int]]:
  """Returns the ids of prompts, with the tokens that precede a document in training.

  Args:
    prompts: texts.
    tokenizer: of the model.
    facts: of the model.
    names: of the prompts, for messages.

  Raises:
    InputError: a prompt is empty, too long, or not valid Unicode.
  """
  texts = [whole(prompt, name) for name, prompt in zip(names, prompts, strict=True)]
  begin = list(frame(tokenizer).prefix)
  found = [i.tolist() for i in tokenizer.encode(texts)]
  # A prompt may spell the begin of text itself.
  ids = [i if i[: len(begin)] == begin else begin + i for i in found]
  check_prompts(ids, facts, names)
  return ids


def stop_ids(tokenizer: Tokenizer, stop: Sequence[str]) -> list[int]:
  """Returns the ids of the stop texts that are special tokens, which no decoded text shows.

  Raises InputError if a stop text holds a special token and more: no decoded text holds both.
  """
  for text in stop:
    inside = [token for token in tokenizer.hidden if token in text]
    if inside and text not in inside:
      raise InputError(
        f'generate.stop={text!r}: expected a text, or one special token; {inside[0]!r} is special: '
        'name it as a stop of its own'
      )
  return [tokenizer.hidden[text] for text in stop if text in tokenizer.hidden]


def _rows(inputs: Mapping[str, Any]) -> int:
  """Returns the number of rows of inputs without prompts."""
  return max((int(x.shape[0]) for x in jax.tree.leaves(dict(inputs))), default=0)
