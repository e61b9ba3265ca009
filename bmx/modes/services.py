"""The model of a server: completions of a decoder, or predictions of any other run."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bmx.adapt import adapters, tokens
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.ranges import check_number
from bmx.core.types import Decoder, facts_of
from bmx.data.text.chat_template import ChatTemplate
from bmx.data.text.tokenizer import Tokenizer
from bmx.experiment import Instances
from bmx.models.kernels import QUANTIZED
from bmx.modes.chat import find_template
from bmx.modes.decoder import decoder_of, ends_of, load_tokenizer, load_weights
from bmx.modes.start import Run
from bmx.modes.temperature import with_temperature
from bmx.runtime.storage import Place
from bmx.serve.adapters import stacked
from bmx.serve.chat import end_of_turn
from bmx.serve.decode import decoder
from bmx.serve.engine import Engine
from bmx.serve.text import Options, check_size, stop_ids
from bmx.tasks.views import with_views
from bmx.tasks.zeroshot import with_labels
from bmx.train.run import restored
from bmx.train.state import eval_variables

log = logging.getLogger('bmx')


def generates(x: Experiment) -> bool:
  """Returns whether the model of an experiment is a decoder."""
  return isinstance(x.task.model, Decoder)


def completions(run: Run, options: Options) -> Any:
  """Returns the service of a decoder, compiled, and a line about it.

  Raises InputError: see `load_tokenizer`, `find_template` and `Engine`.
  """
  from bmx.serve.completion_routes import CompletionService
  from bmx.serve.completions import Completions
  from bmx.serve.worker import Worker

  x, words = run.experiment, run.experiment.config['serve']
  coder = load_tokenizer(x, run.folder, run.known)
  render, stop = _template(options.template, coder, run.folder, run.known)
  variables = load_weights(run)
  names, own = _adapters(run, words['adapters'], variables)
  engine = _engine(x, variables, own, run.folder, coder, (*options.stop, *stop))
  worker = Worker(engine, words['max_waiting'])
  made = Completions((x.name, *names), worker, coder, options, render, stop)
  return CompletionService(made), f'{len(engine.rows)} rows of {engine.context} tokens'


def predictions(run: Run) -> Any:
  """Returns the service of a run that predicts, compiled, and a line about it.

  Raises InputError: the run has not trained, its data part reads no instances, its checkpoint is
  missing, or it has no temperature that `predict.temperature` asks for.
  """
  from bmx.serve.predict_routes import PredictionService
  from bmx.serve.predictions import Predictions
  from bmx.serve.predictor import Batcher, Predictor

  x, words = run.experiment, run.experiment.config['serve']
  check_number('serve.batch', words['batch'], at_least=1)
  check_number('serve.window', words['window'], at_least=0)
  check_number('serve.max_instances', words['max_instances'], at_least=1)
  if run.stored is None:
    raise InputError(f'--workdir={run.workdir}: expected the directory of a run that has trained')
  read, choice = Instances(x, run.stored), x.config['predict']
  task = with_labels(x.task, choice['labels'], choice['templates'], run.known)
  state, number = restored(x, run.workdir, run.step)
  variables = eval_variables(state)
  made = with_temperature(task, choice['temperature'], run.workdir, number)
  made = with_views(made, choice['tta'])
  predictor = Predictor(made, x.layout, variables, read.spec, words['batch'])
  worker = Batcher(predictor, words['window'] / 1000, words['max_waiting'])
  columns = [dataclasses.asdict(c) for c in read.columns]
  service = Predictions(x.name, worker, task, read, columns, words['max_instances'])
  line = f'predictions of step {number}, batches of {", ".join(map(str, predictor.sizes))}'
  return PredictionService(service), line


def _adapters(
  run: Run, word: str, variables: Mapping[str, Any]
) -> tuple[list[str], list[tuple[float, Any]]]:
  """Reads `serve.adapters` -> names, and (scale, adapters) of each.

  Raises InputError: a name twice, or adapters of another base or tokenizer than the served ones.
  """
  if not word:
    return [], []
  pairs = [part.strip().partition('=') for part in word.split(',')]
  folders = {name: folder for name, _, folder in pairs}
  if (
    len(folders) < len(pairs)
    or run.experiment.name in folders
    or not all(n and f for n, _, f in pairs)
  ):
    raise InputError(f'serve.adapters={word!r}: expected NAME=RUN,NAME=RUN with names of their own')
  if QUANTIZED in variables:
    raise InputError(f'serve.adapters={word!r}: expected a run whose kernels are not stored as '
                     'codes')  # fmt: skip
  for name, folder in folders.items():
    if found := tokens.difference(folder, str(run.folder)):
      raise InputError(
        f'serve.adapters: {name}={folder}: expected the tokenizer of the served model, as an id '
        f'means another text otherwise: {found}'
      )
  loaded = adapters.load(folders)
  ours, base = (tree.named(jax.device_get(p)) for p in (variables['params'], loaded.base))
  differ = [k for k in {**ours, **base} if k not in ours or k not in base
            or not np.array_equal(ours[k], base[k])]  # fmt: skip
  if differ:
    raise InputError(f'serve.adapters={word!r}: expected adapters of the weights that are served; '
                     f'their base differs in {sorted(differ)[0]}')  # fmt: skip
  return [*folders], [loaded.own[name] for name in folders]


def weights(run: Run) -> Any:
  """Returns the weights of a run in the form that its service takes: see `swap` of its worker."""
  x = run.experiment
  if not generates(x):
    return eval_variables(restored(x, run.workdir, run.step)[0])
  return decoder(decoder_of(x), layout=x.layout, **load_weights(run))[1]


def _engine(
  x: Experiment,
  variables: dict[str, Any],
  own: Sequence[tuple[float, Any]],
  folder: Place,
  coder: Tokenizer,
  stop: Sequence[str],
) -> Engine:
  """Compiles the engine.

  Args:
    x: of the run.
    variables: see `load_weights`.
    own: adapters, see `serve.adapters`.
    folder: of the weights.
    coder: the tokenizer.
    stop: texts that end an answer; a special token ends it as an id.
  """
  model, words = decoder_of(x), x.config['serve']
  check_size(coder, facts_of(model))
  ends = *(ends_of(x, folder, coder) or coder.ends), *stop_ids(coder, stop)
  sizes = {'rows': words['rows'], 'context': words['context']}
  cache = Options(**x.generate).cache
  plain, weights = decoder(model, layout=x.layout, cache=cache, **variables)
  if own:
    weights = {**weights, **stacked(own, x.config['dtype'], x.layout)}
  engine = Engine(plain, weights, x.layout, ends=ends, **sizes)
  engine.compile()
  return engine


def _template(
  name: str, coder: Tokenizer, folder: Place, known: dict[str, Any]
) -> tuple[Callable[[Sequence[Any]], str] | None, tuple[str, ...]]:
  """Returns the function that writes a chat, and the texts that end an answer.

  (None, ()) if the model has no template and the command names none.
  """
  try:
    template: ChatTemplate = find_template(name, coder, folder, known)
  except InputError:
    if name:
      raise
    log.info('chat       without a template: /v1/chat/completions is refused')
    return None, ()
  end = end_of_turn(template, coder)
  return lambda messages: template.render(messages, answer=True), (end,) if end else ()
