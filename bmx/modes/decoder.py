"""The decoder of a command: weights, tokenizer and ends of a run or of `init.path`."""

import logging
from collections.abc import Mapping
from typing import Any

import optax

from bmx.adapt import restore, tokens
from bmx.compress.quantize import Quantized
from bmx.core import errors, tree
from bmx.core.experiment import Experiment
from bmx.core.types import Decoder, facts_of
from bmx.data.text import special, tokenizer
from bmx.data.text.tokenizer import Tokenizer
from bmx.models.kernels import QUANTIZED
from bmx.modes.start import Run
from bmx.parallel import jit
from bmx.runtime.storage import Place, place
from bmx.runtime.writer import brief
from bmx.serve.decode import check_decoder, check_reads_text, decoder
from bmx.serve.generate import GenerationStats
from bmx.serve.speculate import Draft
from bmx.serve.text import Options
from bmx.tasks.language import CausalLM
from bmx.train import datafile, package
from bmx.train.run import restored
from bmx.train.state import eval_variables, plan_state, state_spec, variables_of

log = logging.getLogger('bmx')


def decoder_of(x: Experiment) -> Any:
  """Returns the model of an experiment. Raises InputError if it is not a decoder."""
  model: Any = x.task.model
  if not isinstance(model, Decoder):
    raise errors.InputError(
      f'{type(model).__name__} cannot generate: expected a decoder such as bmx.models.gpt:GPT'
    )
  check_reads_text(model)
  return model


def load_weights(run: Run) -> dict[str, Any]:
  """Reads the variables of a command: 'params', and 'quantized' where a run keeps codes."""
  x, spec = run.experiment, state_spec(run.experiment)
  if x.weights and not package.holds_weights(run.workdir):
    if run.step != 'latest':
      raise errors.InputError(
        f'--step={run.step}: expected latest, as init.path={x.weights} has no steps; remove --step'
      )
    if x.config['init'].get('adapter'):
      return {'params': jit(x.task.merged_params, x.layout)(variables_of(x.init(spec)))}
    return {'params': tree.nested(restore.load(x.weights, spec.plain))}
  if isinstance(x.task, Quantized):
    variables = eval_variables(restored(x, run.workdir, run.step)[0])
    return {k: variables[k] for k in ('params', QUANTIZED)}
  return {'params': restore.merged_params(x.task, spec, str(run.workdir), run.step, x.layout)}


def load_draft(run: Run, options: Options) -> Draft | None:
  """Reads the model that `generate.draft` names; None without one.

  Raises InputError if it cannot generate, or its tokenizer is another one.
  """
  folder = options.draft
  if not folder:
    return None
  if differ := tokens.difference(folder, str(run.folder)):
    raise errors.InputError(f'generate.draft={folder}: expected the tokenizer of the model, as an '
                            f'id means another text otherwise: {differ}')  # fmt: skip
  x, model = run.experiment, restore.model(folder)
  check_decoder(model, x.layout)
  spec = plan_state(CausalLM(model), optax.identity(), x.data.abstract, x.layout)
  params = tree.nested(restore.load(folder, spec.plain))
  return Draft(*decoder(model, params, x.layout, options.cache), options.draft_tokens)


def load_tokenizer(x: Experiment, folder: Place, state: Mapping[str, Any]) -> Tokenizer:
  """The run's tokenizer, in the `state` of its data; else that of the weights, or bytes.

  Raises InputError if tokenizer.json differs from the run's, or is missing and the model's
  vocabulary is not that of bytes.
  """
  template = state.get('chat_template', '')
  if own := state.get('tokenizer'):
    datafile.check_tokenizer(folder, own)
    return tokenizer.Subwords(own, names=state.get('special_tokens'), chat_template=template)
  for where in (folder, place(x.weights or folder)):
    if (where / 'tokenizer.json').is_file():
      return tokenizer.load(str(where))
  vocab_size = facts_of(x.task.model).vocab_size
  if vocab_size != 256:
    raise errors.InputError(
      f'{folder}: expected a tokenizer.json, as vocab_size={vocab_size} is not that of bytes; put '
      "the model's tokenizer there"
    )
  return tokenizer.Bytes(template)


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


def log_speed(stats: GenerationStats) -> None:
  """Logs tokens and seconds of a command."""
  if stats.slides:
    log.info('the window slid: the cache was filled %d times', stats.slides + 1)
  if stats.new_tokens:
    log.info(
      '%d prompt tokens in %.2f s, then %d tokens at %s tokens/s (compiled in %.1f s)',
      stats.prompt_tokens, stats.prefill_seconds, stats.new_tokens, brief(stats.tokens_per_second),
      stats.compile_seconds,
    )  # fmt: skip
