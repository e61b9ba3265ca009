"""Mode `generate`: texts of a decoder, printed or written as JSON lines; images of other tasks."""

import json
import logging
import sys
from collections.abc import Sequence

from bmx.core import errors
from bmx.core.terminal import printable
from bmx.data.text import documents
from bmx.modes import Request, pictures
from bmx.modes.decoder import (
  decoder_of,
  ends_of,
  load_draft,
  load_tokenizer,
  load_weights,
  log_speed,
)
from bmx.modes.start import open_weights
from bmx.runtime.files import replacing
from bmx.runtime.storage import Place
from bmx.serve.decode import prompt_names
from bmx.serve.generate import GenerationStats
from bmx.serve.images import image_task
from bmx.serve.text import Options, TextGenerator

log = logging.getLogger('bmx')


def run(request: Request) -> int:
  """Continues each --prompt (printed) or each line of --input (written to generations.jsonl).

  An encoder-decoder answers them: it translates, for instance.
  """
  opened = open_weights('generate', request, writes=not request.prompts)
  x, folder = opened.experiment, opened.folder
  if image_task(x.task) is not None:
    return pictures.run(opened, request)
  if request.output:
    raise errors.InputError(
      f'--output={request.output}: expected none, as texts are printed, or written to '
      'WORKDIR/generations.jsonl'
    )
  if bool(request.prompts) == bool(request.input):
    raise errors.InputError(
      'give --prompt=TEXT, once for each prompt, or --input=FILE; one of the two'
    )
  options = Options(**x.generate)
  model = decoder_of(x)
  if request.prompts:
    names, prompts = prompt_names(len(request.prompts)), request.prompts
  else:
    names, prompts = zip(*documents.located(request.input, 'prompt', 'line'), strict=True)
  variables = load_weights(opened)
  coder = load_tokenizer(x, folder, opened.known)
  ends = ends_of(x, folder, coder)
  generator = TextGenerator(model, layout=x.layout, tokenizer=coder, options=options, ends=ends,
                            draft=load_draft(opened, options), **variables)  # fmt: skip
  del variables  # the generator has its own
  generator.check(prompts, names)
  stats = GenerationStats()
  if request.prompts:
    _print(generator, prompts, x.seed, stats)
  else:
    _write(generator, prompts, x.seed, stats, opened.workdir)
  log_speed(stats)
  return errors.DONE


def _print(
  generator: TextGenerator, prompts: Sequence[str], seed: int, stats: GenerationStats
) -> None:
  """Prints one text while it is generated; several texts when all are complete.

  A terminal gets no control characters: weights of others may generate anything.
  """
  out = sys.stdout
  shown = printable if out.isatty() else str
  if len(prompts) == 1 and generator.options.stream:
    before = generator.shown(prompts[0], '')
    for (part,) in generator.stream(prompts, seed, stats):
      out.write(shown(before + part))
      out.flush()
      before = ''
    out.write('\n')
    return
  for prompt, text in zip(prompts, generator.generate(prompts, seed, stats), strict=True):
    out.write(shown(f'{generator.shown(prompt, text)}\n\n'))


def _write(
  generator: TextGenerator,
  prompts: Sequence[str],
  seed: int,
  stats: GenerationStats,
  workdir: Place,
) -> None:
  """Writes generations.jsonl."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'generations.jsonl'
  with replacing(path) as file:
    for prompt, text in zip(prompts, generator.generate(prompts, seed, stats), strict=True):
      file.write(json.dumps({'prompt': prompt, 'text': text}) + '\n')
  log.info('%d texts in %s', len(prompts), path)
