"""Reads adapters of PEFT: adapter_config.json and adapter_model.safetensors.

Source: `peft` 0.21, tuners/lora and utils/save_and_load.py.
"""

import logging
import math
import pathlib
from collections.abc import Container, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from bmx.adapt import vision
from bmx.adapt.adalora import AdaLoRA
from bmx.adapt.architectures import ARCHITECTURES
from bmx.adapt.configs import describe
from bmx.adapt.families import Architecture
from bmx.adapt.lora import ADAPTERS, DIGEST, FROZEN, TRAINED, LoRA
from bmx.adapt.lora import BASE as LORA_BASE
from bmx.adapt.seq2seq import is_gated
from bmx.adapt.tensors import Tensor, canonical, contents, read_json, target_of
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models import bert
from bmx.models.kernels import QUANTIZED
from bmx.models.stack import layers_apart
from bmx.ops import lowrank
from bmx.runtime.fetch import fetch
from bmx.tasks.common import Wrapper
from bmx.train.state import StateSpec

log = logging.getLogger('bmx')

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
ROOT = 'base_model.model.'  # before the names of the model's modules
A, B = '.lora_A.weight', '.lora_B.weight'
BASE = 'bmx_base'  # metadata of WEIGHTS: digest of the adapted kernels of the plain base
# Keys of adapter_config.json that change nothing here, or that are read.
READ = {
  'peft_type', 'r', 'lora_alpha', 'use_rslora', 'bias', 'init_lora_weights', 'target_modules',
  'modules_to_save', 'task_type', 'lora_dropout', 'fan_in_fan_out', 'base_model_name_or_path',
  'revision', 'auto_mapping', 'peft_version', 'inference_mode', 'exclude_modules',
  'layers_to_transform', 'layers_pattern', 'megatron_core', 'qalora_group_size', 'loftq_config',
  'runtime_config', 'ensure_weight_tying',
}  # fmt: skip
ONLY = {
  'peft_type': ('LORA',),
  'bias': ('none', None),
  'init_lora_weights': (True, False, None, 'gaussian', 'eva', 'orthogonal'),  # others move the base
}


def adapters_of(task: Any) -> LoRA:
  """Returns the LoRA of a task, inside other wrappers or not. Raises InputError without one."""
  inner = task
  while isinstance(inner, Wrapper):
    if isinstance(inner, LoRA):
      return inner
    inner = inner.inner
  raise InputError(
    f'task {type(task).__name__}: expected bmx.adapt.lora:LoRA around it, to hold adapters'
  )


def base_digest(variables: Mapping[str, Any]) -> str:
  """Returns the digest of the base's plain kernels that have an adapter; '' if it is not known.

  It is that of the weights before they were stored in fewer bits, see `record_base`.
  """
  paths = lowrank.by_path(variables['params'][ADAPTERS])
  if LORA_BASE in variables:
    digest = bytes(np.asarray(tree.fetch(variables[LORA_BASE][DIGEST])))
    return digest.hex() if any(digest) else ''
  return _digest(paths, tree.named(variables[FROZEN]) | tree.named(variables.get(QUANTIZED, {})))


def record_base(task: Any, spec: StateSpec, plain: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns what a new state of adapters keeps of its plain base: 'base/digest' -> uint8 [32].

  {} if the base is kept as it is, or `plain` lacks a kernel that has an adapter.

  Args:
    task: of the run.
    spec: of its state.
    plain: name -> array, the weights that the run begins with.
  """
  if LORA_BASE not in task.constant:
    return {}
  paths = lowrank.by_path(spec.abstract.params[ADAPTERS])
  if any(f'{path}/kernel' not in plain for path in paths):
    return {}
  digest = bytes.fromhex(_digest(paths, plain))
  return {f'{LORA_BASE}/{DIGEST}': np.frombuffer(digest, np.uint8)}


def _digest(paths: Container[str], weights: Mapping[str, Any]) -> str:
  """Returns the digest of the kernels, or their codes, at paths; stacked or not."""
  own = {k: v for k, v in weights.items() if k.rpartition('/kernel')[0] in paths}
  apart = layers_apart(tree.nested(own))
  return tree.digest({k: v if i is None else v[i] for k, (v, i) in sorted(apart.items())})


def load(folder: str, task: Any, params: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Reads adapters of PEFT: 'params/NAME' -> array, placed like `params`.

  Parameters that the task trains whole are read where the folder has them (`modules_to_save`).

  Args:
    folder: of PEFT.
    task: with a LoRA.
    params: its parameters, abstract.

  Raises:
    InputError: settings that bmx does not support, another rank or scale than the task's, tensors
      that are missing, superfluous or of another shape (all are listed).
  """
  path = fetch(folder)
  lora, config = adapters_of(task), read_json(path / CONFIG)
  _check(path, config, lora)
  name, known = architecture_of(task.model)
  tensors = {_name(path, k): v for k, v in contents(path / WEIGHTS).items()}
  tensors = canonical(tensors, known.family, False)
  rules = known.rules(isinstance(task.model, bert.HEADED), is_gated(task.model))
  found, problems, used = {}, [], set()
  for where, parts in lowrank.by_path(params[ADAPTERS]).items():
    target = target_of(f'{where}/kernel', parts[lowrank.A], rules)
    if not target.rule:
      problems.append(f'{where}: no tensor of {name} is known for it')
      continue
    layers = [(t.removesuffix('.weight') + A, t.removesuffix('.weight') + B)
              for t in target.tensors]  # fmt: skip
    used |= {x for pair in layers for x in pair}
    lines = [x for pair in layers for x in _problems(tensors, pair, parts, target)]
    problems += lines
    if not lines:
      read = [_read(tensors[a], tensors[b], parts, target) for a, b in layers]
      for part, leaves in zip((lowrank.A, lowrank.B), zip(*read, strict=True), strict=True):
        array = np.stack(leaves) if target.stacked else leaves[0]
        found[f'{ADAPTERS}/{where}/{part}'] = _put(array, parts[part])
  for where, leaf in tree.named(params.get(TRAINED, {})).items():
    target = target_of(where, leaf, rules)
    there = [x for x in target.tensors if x in tensors]
    used |= {*there}
    if there:
      problems += target.problems(tensors, {'vocab_size': task.model.facts.vocab_size, 'heads': 0})
      found[f'{TRAINED}/{where}'] = target
    else:
      log.info('%s: has no %s: it starts as the base is, or anew', path, where)
  problems += _partly(params[ADAPTERS], rules)
  problems += [f'extra    {k} {tensors[k].shape}' for k in sorted(tensors.keys() - used)]
  if problems:
    lines = '\n  '.join(problems[:40])
    raise InputError(f'{path} holds other adapters than task.targets={lora.targets!r}:\n  {lines}')
  arrays = {k: v.array(tensors) if k.startswith(TRAINED) else v for k, v in found.items()}
  return {f'params/{k}': v for k, v in arrays.items()}


def check_base(folder: str, variables: Mapping[str, Any]) -> None:
  """Compares the base of a PEFT folder that bmx wrote with that of the variables.

  Raises InputError if they differ. A folder of others names no digest: a log line says so.
  """
  path = fetch(folder)
  with safe_open(path / WEIGHTS, 'np') as file:
    digest = (file.metadata() or {}).get(BASE, '')
  if not digest:
    log.warning('%s names no digest of its base: it is not compared with init.path', path)
    return
  own = base_digest(variables)
  if not own:
    log.warning('%s: the base of this run is not known: it is not compared', path)
  elif own != digest:
    raise InputError(
      f'init.adapter={folder!r}: expected adapters of the base {own[:12]}, found those of '
      f'{digest[:12]}; name the base that they were trained on in init.path'
    )


def _check(path: pathlib.Path, config: Mapping[str, Any], lora: LoRA) -> None:
  """Raises InputError for settings that are not honored; see `load`."""
  lines = [f'{k}={config.get(k)!r}: supported is {", ".join(map(repr, values))}'
           for k, values in ONLY.items() if config.get(k) not in values]  # fmt: skip
  lines += [f'{k}={v!r}: not supported' for k, v in config.items() if k not in READ and v]
  if lines:
    raise InputError(f'bmx cannot reproduce {path / CONFIG}:\n  ' + '\n  '.join(lines))
  rank, alpha = config.get('r', 8), config.get('lora_alpha', 8)
  scale = alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
  if isinstance(lora, AdaLoRA):
    raise InputError(f'{path}: expected task bmx.adapt.lora:LoRA, not AdaLoRA')
  if rank != lora.rank or not math.isclose(scale, lora.scale, rel_tol=1e-6):
    raise InputError(
      f'task.rank={lora.rank}, task.alpha={lora.alpha}: expected rank={rank}, alpha={alpha}, '
      f'rslora={bool(config.get("use_rslora"))}, those of {path}'
    )


def _name(path: pathlib.Path, name: str) -> str:
  if not name.startswith(ROOT):
    raise InputError(f'{path / WEIGHTS}: {name}: expected names that begin with {ROOT}')
  return name.removeprefix(ROOT)


def architecture_of(model: Any) -> tuple[str, Architecture]:
  """Returns the architecture of transformers that a model is.

  Raises InputError without one, and for image models, whose modules have other names than tensors.
  """
  if isinstance(model, vision.MODELS):
    raise InputError(
      f'model={type(model).__name__}: PEFT has no adapters that bmx reads or writes for image '
      'models; start from a run of adapters, or export the merged weights'
    )
  (name,) = describe(model, (), '')['architectures']
  return name, ARCHITECTURES[name]


def _sides(parts: Mapping[str, Any], stacked: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the contracted and the output dimensions of an adapter's kernel."""
  return parts[lowrank.A].shape[stacked:-1], parts[lowrank.B].shape[stacked + 1 :]


def _problems(
  tensors: Mapping[str, Tensor], pair: tuple[str, str], parts: Mapping[str, Any], target: Any
) -> Iterator[str]:
  """Yields a line for each obstacle to reading the adapter of one layer."""
  inputs, outputs = map(math.prod, _sides(parts, target.stacked))
  rank = parts[lowrank.A].shape[-1]
  for name, shape in zip(pair, ([rank, inputs], [outputs * target.rule.parts, rank]), strict=True):
    if name not in tensors:
      yield f'missing  {name} {shape}'
    elif tensors[name].shape != shape:
      yield f'differs  {name}: has {tensors[name].shape}, expected {shape}'


def _read(a: Tensor, b: Tensor, parts: Mapping[str, Any], target: Any) -> tuple[Any, Any]:
  inputs, outputs = _sides(parts, target.stacked)
  whole = lambda t: t.read([slice(0, n) for n in t.shape]).astype(np.float32)
  size, part = math.prod(outputs), target.rule.part
  rows = whole(b)[part * size : (part + 1) * size]
  return whole(a).T.reshape(*inputs, -1), rows.T.reshape(-1, *outputs)


def _partly(adapters: Any, rules: Mapping[str, Any]) -> Iterator[str]:
  """Yields a line for each tensor of several kernels (GPT-2's) of which some have no adapter."""
  held: dict[str, set[int]] = {}
  parts = {}
  for where, leaves in lowrank.by_path(adapters).items():
    target: Any = target_of(f'{where}/kernel', leaves[lowrank.A], rules)
    for tensor in target.tensors if target.rule else ():
      held.setdefault(tensor, set()).add(target.rule.part)
      parts[tensor] = target.rule.parts
  for tensor, some in held.items():
    if len(some) < parts[tensor]:
      yield f'{tensor}: holds query, key and value: expected targets that match all of them'


def _put(array: np.ndarray, like: Any) -> jax.Array:
  if like.sharding is None:
    return jax.numpy.asarray(array)
  return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])
