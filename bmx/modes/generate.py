"""Mode `generate`: texts of a decoder, printed or written as JSON lines."""

import json
import logging
import sys
from collections.abc import Sequence

from bmx.core import errors
from bmx.core.terminal import printable
from bmx.data.text import documents
from bmx.modes import Request
from bmx.modes.decoder import (
  decoder_of,
  ends_of,
  load_tokenizer,
  load_weights,
  log_speed,
)
from bmx.modes.start import need_run, open_run
from bmx.parallel import jit
from bmx.runtime.files import replacing
from bmx.runtime.storage import Place
from bmx.serve.decode import prompt_names
from bmx.serve.generate import GenerationStats
from bmx.serve.text import Options, TextGenerator
from bmx.train import datafile
from bmx.train.run import restored
from bmx.train.state import eval_variables, state_spec, variables_of

log = logging.getLogger('bmx')
PROMPT_BATCH = 32  # prompts of a file that are continued together


def run(request: Request) -> int:
  """Continues each --prompt (printed) or each line of --input (written to generations.jsonl)."""
  if not request.config.init.path:
    need_run('generate', request)
  x, workdir, stored = open_run(request, read=False, evals=False)
  if bool(request.prompts) == bool(request.input):
    raise errors.InputError(
      'give --prompt=TEXT, once for each prompt, or --input=FILE; one of the two'
    )
  if request.prompts and request.workdir and not (workdir / 'checkpoints').is_dir():
    raise errors.InputError(
      f'--workdir={workdir}: expected the directory of a run that has trained'
    )
  options = Options(**x.generate)
  model = decoder_of(x)
  if request.prompts:
    names, prompts = prompt_names(len(request.prompts)), request.prompts
  else:
    names, prompts = zip(*documents.located(request.input, 'prompt', 'line'), strict=True)
  folder, variables = load_weights(x, workdir, request.step)
  known = stored.state if stored is not None and folder == workdir else {}
  coder = load_tokenizer(x, folder, known)
  ends = ends_of(x, folder, coder)
  generator = TextGenerator(model, layout=x.layout, tokenizer=coder, options=options, ends=ends,
                            **variables)  # fmt: skip
  del variables  # the generator has its own
  generator.check(prompts, names)
  stats = GenerationStats()
  if request.prompts:
    _print(generator, prompts, x.seed, stats)
  else:
    _write(generator, prompts, x.seed, stats, workdir)
  log_speed(stats)
  return errors.DONE


def _weights(x: Experiment, workdir: Place, which: str) -> tuple[Place, dict[str, Any]]:
  """Reads the weights of a run or of `init.path`; returns (folder, variables).

  The variables are 'params', and 'quantized' where a run keeps kernels as codes.
  """
  spec = state_spec(x)
  if x.weights and not (workdir / 'checkpoints').is_dir():
    if which != 'latest':
      raise errors.InputError(
        f'--step={which}: expected latest, as init.path={x.weights} has no steps; remove --step'
      )
    if x.config['init'].get('adapter'):
      merged = jit(x.task.merged_params, x.layout)(variables_of(x.init(spec)))
      return place(x.weights), {'params': merged}
    found = restore.load(x.weights, spec.plain)
    return place(x.weights), {'params': tree.nested(found)}
  if isinstance(x.task, Quantized):
    variables = eval_variables(restored(x, workdir, which)[0])
    return workdir, {k: variables[k] for k in ('params', QUANTIZED)}
  params = restore.merged_params(x.task, spec, str(workdir), which, x.layout)
  return workdir, {'params': params}


def _tokenizer(x: Experiment, folder: Place, state: Mapping[str, Any]) -> Tokenizer:
  """The run's tokenizer, in the `state` of its data; else that of the weights, or bytes.

  Raises InputError if tokenizer.json differs from the run's, or is missing and the model's
  vocabulary is not that of bytes.
  """
  if own := state.get('tokenizer'):
    datafile.check_tokenizer(folder, own)
    return tokenizer.Subwords(own, names=state.get('special_tokens'))
  for where in (folder, place(x.weights or folder)):
    if (where / 'tokenizer.json').is_file():
      return tokenizer.load(str(where))
  vocab_size = facts_of(x.task.model).vocab_size
  if vocab_size != 256:
    raise errors.InputError(
      f'{folder}: expected a tokenizer.json, as vocab_size={vocab_size} is not that of bytes; put '
      "the model's tokenizer there"
    )
  return tokenizer.Bytes()


def ends_of(x: Experiment, folder: Place, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids that end a text by the files of a Hugging Face folder; () where they name none.

  A run that began with such a folder keeps them, and may have trained on documents that its
  tokenizer ends: both kinds of end count.
  """
  own = special.read_ids(folder)['eos']
  if own:
    return own
  stored = datafile.read(folder)
  kept = (stored.ends if stored else ()) or datafile.ends_of(x.weights)
  return tuple(dict.fromkeys((*kept, *tokenizer.ends))) if kept or x.weights else ()


def _print(
  generator: TextGenerator, prompts: Sequence[str], seed: int, stats: GenerationStats
) -> None:
  """Prints one text while it is generated; several texts when all are complete.

  A terminal gets no control characters: weights of others may generate anything.
  """
  out = sys.stdout
  shown = printable if out.isatty() else str
  if len(prompts) == 1 and generator.options.stream:
    before = prompts[0]
    for (part,) in generator.stream(prompts, seed, stats):
      out.write(shown(before + part))
      out.flush()
      before = ''
    out.write('\n')
    return
  for prompt, text in zip(prompts, generator.generate(prompts, seed, stats), strict=True):
    out.write(shown(f'{prompt}{text}\n\n'))


def _write(
  generator: TextGenerator,
  prompts: Sequence[str],
  seed: int,
  stats: GenerationStats,
  workdir: Place,
) -> None:
  """Writes generations.jsonl, PROMPT_BATCH prompts at a time: memory does not grow with them."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'generations.jsonl'
  with replacing(path) as file:
    for first in range(0, len(prompts), PROMPT_BATCH):
      some = prompts[first : first + PROMPT_BATCH]
      texts = generator.generate(some, seed, stats, first)
      for prompt, text in zip(some, texts, strict=True):
        file.write(json.dumps({'prompt': prompt, 'text': text}) + '\n')
  log.info('%d texts in %s', len(prompts), path)
