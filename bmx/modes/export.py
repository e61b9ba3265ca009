"""Mode `export`: a run as a package that needs no bmx, as a Hugging Face folder, or as ONNX."""

import dataclasses
import importlib.util
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.compress.quantize import FakeQuantize, Rounding
from bmx.core import errors, tree
from bmx.core.errors import InputError, Stop
from bmx.core.experiment import Experiment
from bmx.core.paths import local
from bmx.core.types import HostBatch, Task, Variables, facts_of
from bmx.export import card, check, onnx, program, write
from bmx.models.stack import unstacked
from bmx.modes import Request
from bmx.modes.compress import alone, layers
from bmx.modes.merge import merge
from bmx.modes.start import need_run, open_run
from bmx.parallel import jit
from bmx.runtime.files import numbers, read_json
from bmx.runtime.storage import Place
from bmx.train import package
from bmx.train.datafile import DataFile
from bmx.train.run import restored
from bmx.train.rundir import read_config
from bmx.train.state import eval_variables, state_spec

log = logging.getLogger('bmx')
FORMATS = ('bmx', 'huggingface', 'onnx')
KERNELS = ('cudnn', 'splash', 'ring')  # of one kind of device, or of a mesh


class Source(NamedTuple):
  """A run that is exported.

  Attributes:
    run: its experiment, on one device.
    workdir: run directory.
    stored: its data.json.
    step: of the checkpoint.
    variables: of the run's task.
    config: of the plain task, without its training.
    plain: experiment of that config.
    weights: the plain parameters and running statistics: 'params', and collections by name.
  """

  run: Experiment
  workdir: Place
  stored: DataFile
  step: int
  variables: Variables
  config: dict[str, Any]
  plain: Experiment
  weights: Variables


def run(request: Request) -> int:
  """Writes --output, or WORKDIR/export/FORMAT; prints the largest error of the check."""
  need_run('export', request)
  words = request.config.export
  if words.format not in FORMATS:
    raise InputError(f'export.format={words.format!r}: expected one of {", ".join(FORMATS)}')
  check_words(words)
  if words.format == 'onnx':
    onnx.check_libraries()
  card.check_license(words.license)
  output = local(request.output or f'{request.workdir}/export/{words.format}')
  write.check_output(output)
  exact = words.format == 'huggingface'  # transformers computes in float32
  request = dataclasses.replace(request, config=portable(request.config, exact))
  x, workdir, stored = open_run(request, read=False, evals=False, devices=jax.devices()[:1])
  source = open_source(request, x, workdir, stored)
  if words.format == 'huggingface':
    with write.draft(output) as draft:
      merge(x, workdir, draft, request.step, source.stored)
      error = compare_with_transformers(source, draft)
  elif words.format == 'onnx':
    error = write_onnx(source, output, words.length)
  else:
    error = write_package(source, output, words.length, words.license)
  if error is not None:
    log.info('checked    without bmx: largest error %.2g of the largest output', error)
  log.info('exported   %s', output)
  return errors.DONE


def check_words(words: Any) -> None:
  """Raises InputError for a word that the format does not have."""
  if words.format == 'huggingface' and words.length:
    raise InputError(f'export.length={words.length}: expected 0 with export.format=huggingface, as '
                     'transformers reads rows of any length')  # fmt: skip
  if words.format != 'bmx' and words.license:
    raise InputError(f'export.license={words.license!r}: expected none with export.format='
                     f'{words.format}, which has no model card')  # fmt: skip


def portable(given: Any, exact: bool = False) -> Any:
  """Returns a config for one device of any kind: no mesh, no kernels of one kind of device.

  Args:
    given: the config of a run.
    exact: whether it computes in float32 whatever the run does.
  """
  config, base = recipes.plain(given), recipes.plain(recipes.base())
  config |= {word: base[word] for word in ('mesh', 'rules', 'compute')}
  task = _replaced(config['task'], 'attention', KERNELS, 'auto')
  if exact:
    config['dtype'] = 'float32'
    task = _replaced(task, 'dtype', ('bfloat16', 'float16'), 'float32')
  return recipes.from_plain({**config, 'task': task})


def _replaced(part: Mapping[str, Any], word: str, old: Sequence[Any], new: Any) -> dict[str, Any]:
  """Returns a part in which a word that has one of the values `old` has the value `new`."""
  of = lambda v: _replaced(v, word, old, new) if isinstance(v, Mapping) else v
  found = {k: of(v) for k, v in part.items()}
  return found | ({word: new} if found.get(word) in old else {})


def open_source(request: Request, x: Experiment, workdir: Place, stored: DataFile | None) -> Source:
  """Reads the weights of a run.

  Raises InputError for a run without data.json, and one whose task rounds in its forward pass.
  """
  if stored is None:
    raise InputError(f'{workdir}: expected a data.json, which describes the inputs of the model')
  *wrappers, (_, inner) = layers(recipes.plain(request.config)['task'])
  for maker, part in wrappers:
    rounds = issubclass(maker, Rounding) and part.get('activations')
    if issubclass(maker, FakeQuantize) or rounds:
      raise InputError(
        f'task={part["call"]}: expected a run whose weights alone are rounded, as an export has '
        'plain weights and would compute other outputs; export the run that it was made from, or '
        'the --output of bmx compress'
      )
  apart = request.config.export.format == 'onnx'  # jax2onnx converts no scan over layers
  part = _replaced(inner, 'scan', (True,), False) if apart else inner
  config = alone(recipes.plain(request.config), part)
  state, step = restored(x, workdir, request.step)
  variables = eval_variables(state)
  del state
  plain = experiments.build(
    recipes.from_plain(config), request.name, jax.devices()[:1], evals=False, stored=stored
  )
  merged = jit(x.task.merged_params, x.layout)(variables)
  names = [k for k in state_spec(plain).variables if k != 'params']
  weights = {'params': merged, **{k: variables[k] for k in names}}
  weights = unstacked(weights) if apart else weights
  return Source(x, workdir, stored, step, variables, config, plain, weights)


def write_package(source: Source, output: pathlib.Path, length: int, terms: str) -> float:
  """Writes a package; returns the largest error of its outputs.

  Args:
    source: the run.
    output: folder, missing or empty.
    length: see `program.export`.
    terms: license of the card.

  Raises:
    InputError: see `program.export`.
    Stop: the outputs differ from those of the run.
  """
  task, layout = source.plain.task, source.plain.layout
  inputs = program.inputs_of(task, source.weights, source.plain.data.spec, layout)
  made, signature = program.export(task, source.weights, inputs, layout, length)
  config = read_config(source.workdir) | {'config': json.loads(json.dumps(source.config))}
  batches = check.generated(signature.inputs, signature.most, facts_of(task.model).vocab_size)
  with write.draft(output) as draft:
    arrays = {k: tree.fetch(v) for k, v in tree.named(source.weights).items()}
    write.write(draft, source.workdir, config, arrays, made)
    facts = write.facts(source.run.name, source.step, signature, 0.0)
    write.seal(draft, facts)
    error = check.largest_error(check.loaded(draft, batches), own_outputs(source, batches))
    check_error(error, source.config['dtype'])
    facts |= {'error': error, 'results': results_of(source.workdir, source.step)}
    write.seal(draft, facts, card.text(facts, about(source, terms)))
  return error


def write_onnx(source: Source, output: pathlib.Path, length: int) -> float:
  """Writes an ONNX model; returns the largest error of its outputs.

  Raises:
    InputError: jax2onnx is not installed, or cannot convert the model.
    Stop: the outputs differ from those of the run.
  """
  task, layout = source.plain.task, source.plain.layout
  inputs = program.inputs_of(task, source.weights, source.plain.data.spec, layout)
  abstract, most = program.abstract_inputs(task, inputs, length)
  batches = check.generated(program.described(abstract), most, facts_of(task.model).vocab_size)
  with write.draft(output) as draft:
    onnx.write(draft, task, source.weights, abstract, layout)
    error = check.largest_error(onnx.outputs(draft, batches), own_outputs(source, batches))
    check_error(error, source.config['dtype'])
  return error


def compare_with_transformers(source: Source, folder: pathlib.Path) -> float | None:
  """Returns the largest error of the logits of a Hugging Face folder; None without transformers.

  Raises Stop if they differ from those of the run.
  """
  if any(importlib.util.find_spec(name) is None for name in ('torch', 'transformers')):
    log.info('not checked, as transformers and torch are not installed')
    return None
  task, spec = source.plain.task, source.plain.data.spec
  inputs = program.inputs_of(task, source.weights, spec, source.plain.layout)
  signature, most = program.abstract_inputs(task, inputs)
  batches = check.generated(program.described(signature), most, facts_of(task.model).vocab_size)
  rows = [{k: v for k, v in b.items() if k in ('tokens', 'types', 'image')} for b in batches]
  given = check.loaded(folder, rows, 'transformers')
  # Without padding: transformers computes something for it, too.
  whole = [b | {k: np.ones_like(v) for k, v in b.items() if k == 'segment_ids'} for b in batches]
  size = given[0]['logits'].shape[-1]  # without rows that pad the vocabulary
  names = [k for k in given[0] if k != 'logits']
  own = [
    {'logits': o['logits'][..., :size]} | {k: o[k] for k in names}
    for o in own_outputs(source, whole)
  ]
  error = check.largest_error(given, own)
  check_error(error, source.config['dtype'])
  return error


def own_outputs(source: Source, batches: list[HostBatch]) -> list[HostBatch]:
  """Returns what the run itself computes, by its own task and variables."""
  task: Task = source.run.task
  compute = jit(lambda v, batch: program.outputs_of(task, v, batch), source.run.layout)
  return [{k: tree.fetch(v) for k, v in compute(source.variables, b).items()} for b in batches]


def check_error(error: float, dtype: str) -> None:
  """Raises Stop if the outputs of an export differ from those of its run, which has a dtype."""
  if not error <= check.TOLERANCES[dtype]:
    raise Stop(
      f'the outputs of the export differ from those of the run by {error:.2g} of the largest one: '
      f'expected at most {check.TOLERANCES[dtype]:g} in {dtype}; nothing is written'
    )


def results_of(workdir: Place, step: int) -> dict[str, Any]:
  """Returns metrics, steps, device and date of a run that ended with this step; {} of another one.

  Those of a package are the ones that it was exported with.
  """
  if package.is_package(workdir):
    return package.read(workdir).get('results', {})
  summary, lines = workdir / 'summary.json', workdir / 'metrics.jsonl'
  if not (summary.is_file() and lines.is_file()):
    return {}
  last = json.loads(lines.read_text(encoding='utf-8').splitlines()[-1])
  found = {k: numbers(read_json(summary))[k] for k in ('metrics', 'steps', 'device')}
  return found | {'date': card.date(last['time'])} if found['steps'] == step else {}


def about(source: Source, terms: str) -> dict[str, Any]:
  """Returns what a card says of a run besides package.json; see `card.text`."""
  stored = source.stored
  return {
    'description': source.config['description'],
    'license': terms,
    'parameters': tree.count(source.weights['params']),
    'data': {
      'source': stored.metadata.get('source', 'not known'),
      'size': stored.size,
      'digest': stored.digest,
    },
    'class_names': [str(name) for name in stored.state.get('class_names', ())],
    'versions': read_config(source.workdir).get('versions', {}),
  }
