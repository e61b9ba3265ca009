"""Training hooks that generate texts and images."""

import dataclasses
import html
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import facts_of
from bmx.data.text.tokenizer import Bytes, Subwords, Tokenizer
from bmx.models.seq2seq import EncoderDecoder
from bmx.parallel import jit
from bmx.runtime.report import Section
from bmx.serve.decode import check_decoder, check_reads_text
from bmx.serve.images import ImageSampler, clipped
from bmx.serve.sources import encode_sources
from bmx.serve.text import Options, TextGenerator, check_size, encode_prompts
from bmx.tasks import grids
from bmx.train import datafile
from bmx.train.state import eval_variables

log = logging.getLogger('bmx')


class SampleTexts:
  """Continues prompts with the weights of the moment, in the log and in the report.

  In a config: c.hooks.samples = {'call': 'bmx.serve.hooks:SampleTexts', 'every': 500,
  'prompts': ('def ',)}.

  Args:
    prompts: texts to continue.
    max_new_tokens: per prompt.
    temperature: of the draws; 0 is greedy.
    top_k: draws from so many of the most likely tokens; 0 is all.
    seed: of the draws, the same at each step.
    optional: does nothing where the mesh or the number of processes excludes generation.

  Raises:
    InputError: no prompt, or options outside their ranges.
  """

  def __init__(
    self,
    prompts: Sequence[str],
    max_new_tokens: int = 50,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
    optional: bool = False,
  ):
    if not prompts:
      raise InputError('hooks: SampleTexts.prompts=(): expected at least one text')
    self.prompts, self.seed, self.optional = tuple(prompts), seed, optional
    self.able = True
    self.options = Options(max_new_tokens, temperature, top_k)
    self.generator: TextGenerator | None = None  # made at the first call, with its programs
    self.merge: Any = None

  def check_experiment(self, experiment: Any) -> None:
    """Raises InputError if the model, the mesh or the tokenizer exclude generation."""
    x = experiment
    try:
      check_decoder(x.task.model, x.layout)
      check_reads_text(x.task.model)
    except InputError as error:
      if not self.optional:
        raise
      log.info('samples    none: %s', error)
      self.able = False
      return
    facts = facts_of(x.task.model)
    tokenizer = _tokenizer(x.data, facts.vocab_size)
    check_size(tokenizer, facts)
    model = x.task.model
    source = isinstance(model, EncoderDecoder)
    encode = encode_sources if source else encode_prompts
    encode(self.prompts, tokenizer, facts, [repr(p) for p in self.prompts])

  def __call__(self, event: Any) -> Section | None:
    """Generates, logs and returns the texts of a step; None where generation is excluded."""
    if not self.able:
      return None
    x = event.run.experiment
    self.merge = self.merge or jit(x.task.merged_params, x.layout)
    params = self.merge(eval_variables(event.state))
    if self.generator is None:
      tokenizer = _tokenizer(x.data, facts_of(x.task.model).vocab_size)
      stored = datafile.read(event.workdir)
      ends = *(stored.ends if stored else ()), *tokenizer.ends
      self.generator = TextGenerator(x.task.model, params, x.layout, tokenizer, self.options, ends)
    else:
      self.generator.load(params)
    texts = self.generator.generate(self.prompts, self.seed)
    self.generator.release()
    for prompt, text in zip(self.prompts, texts, strict=True):
      log.info('sample %-6d %r', event.step, self.generator.shown(prompt, text))
    event.write_texts(
      {f'{p!r}': self.generator.shown(p, t) for p, t in zip(self.prompts, texts, strict=True)}
    )
    rows = ''.join(
      f'<pre><b>{html.escape(p)}</b>{html.escape(t)}</pre>'
      for p, t in zip(self.prompts, texts, strict=True)
    )
    return Section(f'Texts of step {event.step:,}', rows)


class SampleImages:
  """Generates a grid of images with the weights of the moment, for the report and as a file.

  The newest grid is in report.html; each step has its WORKDIR/samples/STEP.png. The numbers of the
  sampler are those of the config word `generate`.

  In a config: c.hooks.samples = {'call': 'bmx.serve.hooks:SampleImages', 'every': 500}.

  Args:
    count: images; of all classes in turn, if they have classes.
    seed: of the noise, the same at each step.

  Raises:
    InputError: no images.
  """

  def __init__(self, count: int = 50, seed: int = 0):
    if count < 1:
      raise InputError(f'hooks: SampleImages.count={count}: expected at least 1')
    self.count, self.seed = count, seed
    self.sampler: ImageSampler | None = None  # made at the first call, with its program
    self.merge: Any = None

  def check_experiment(self, experiment: Any) -> None:
    """Raises InputError if the task generates no images, or the data's pixels are not in [0, 1]."""
    ImageSampler(experiment, self._options(experiment))
    check_pixels(experiment.data)

  def __call__(self, event: Any) -> Section | None:
    """Generates the images of a step, writes their grid and returns it."""
    x = event.run.experiment
    if self.sampler is None:
      self.sampler = ImageSampler(x, self._options(x))
      self.merge = jit(x.task.merged_params, x.layout)
    images = clipped(self.sampler(self.merge(eval_variables(event.state)), self.seed))
    if jax.process_index():
      return None
    grids.write(event.workdir / 'samples' / f'{event.step}.png', images, self.sampler.columns)
    return grids.section(f'Images of step {event.step:,}', images, self.sampler.columns)

  def _options(self, experiment: Any) -> Any:
    return dataclasses.replace(experiment.images, count=self.count, label=-1)


def check_pixels(data: Any) -> None:
  """Raises InputError if the first images of the data have pixels outside [0, 1]."""
  n = min(data.size, data.batch_size)
  image = data.rows(data.indices(0)[0, :n], np.arange(n))['image']
  if image.min() < 0 or image.max() > 1:
    raise InputError(
      f'data: pixels from {image.min():.3g} to {image.max():.3g}: expected 0 to 1, as generated '
      'images have; set data.mean=(0.0,) and data.std=(1.0,)'
    )


def _tokenizer(data: Any, vocab_size: int) -> Tokenizer:
  """Returns the tokenizer of the data; bytes without one. Raises InputError if it is unknown."""
  text = datafile.tokenizer_of(data)
  if text:
    return Subwords(text, names=datafile.names_of(data))
  if vocab_size != 256:
    raise InputError(f'vocab_size={vocab_size}: expected data with a tokenizer, or 256, the bytes')
  return Bytes()
