"""Writes adapters as folders of PEFT, see `adapt.peft`."""

import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from bmx.adapt import runs
from bmx.adapt.layouts import Rule
from bmx.adapt.lora import ADAPTERS, TRAINED, LoRA
from bmx.adapt.peft import (
  BASE,
  CONFIG,
  ROOT,
  WEIGHTS,
  A,
  B,
  adapters_of,
  architecture_of,
  base_digest,
)
from bmx.adapt.seq2seq import is_gated
from bmx.adapt.tensors import target_of
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.models import bert
from bmx.models.stack import layers_apart
from bmx.ops import lowrank
from bmx.runtime.files import write_json

TASKS = (
  ('ForCausalLM', 'CAUSAL_LM'), ('LMHeadModel', 'CAUSAL_LM'), ('ForQuestionAnswering',
  'QUESTION_ANS'), ('ForSequenceClassification', 'SEQ_CLS'), ('ForTokenClassification',
  'TOKEN_CLS'),
)  # fmt: skip


def save_run(run: str, folder: str | os.PathLike[str], step: str = 'latest') -> None:
  """Writes the adapters of a run as a folder of PEFT; see `save`."""
  path, facts = runs.checkpoint(run, step)
  if not facts.get('constants'):
    raise InputError(f'{run}: expected a run of adapters (bmx.adapt.lora:LoRA)')
  task, variables = runs.read_variables(run, path, facts, {})
  save(folder, task, variables, base=runs.read_base(run))


def save(
  folder: str | os.PathLike[str], task: Any, variables: Mapping[str, Any], base: str = ''
) -> None:
  """Writes adapters as a folder that `peft.PeftModel.from_pretrained` reads.

  The tensor that GPT-2 joins from query, key and value gets the adapters of these side by side:
  its rank is the sum of theirs. AdaLoRA is written as LoRA with Q scaled by the singular values.
  What the task trains whole is written as `modules_to_save`.

  Args:
    folder: must be missing or empty.
    task: with a LoRA.
    variables: of the task.
    base: name of the base for the reader, such as a Hugging Face directory.

  Raises:
    InputError: a model without an architecture of transformers; a folder that is not empty.
  """
  folder = local(folder).resolve()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise InputError(f'{folder} is there already: name another folder, or remove it')
  lora = adapters_of(task)
  name, known = architecture_of(task.model)
  rules = known.rules(isinstance(task.model, bert.HEADED), is_gated(task.model))
  prefix = known.family.prefix if known.bare else ''
  joined: dict[str, list[tuple[Rule, np.ndarray, np.ndarray]]] = {}
  for where, parts in lowrank.by_path(variables['params'][ADAPTERS]).items():
    target = target_of(f'{where}/kernel', parts[lowrank.A], rules)
    if not target.rule:
      raise InputError(f'{where}: a {name} of transformers has no such parameter')
    for i, tensor in enumerate(target.tensors):
      if not tensor.endswith('.weight'):  # of a module of torch without modules of its own
        raise InputError(f'{where}: PEFT adapts modules, and {tensor} is a part of one; leave it '
                         'out of targets')  # fmt: skip
      one = {k: tree.fetch(v)[i] if target.stacked else tree.fetch(v) for k, v in parts.items()}
      joined.setdefault(tensor.removeprefix(prefix), []).append((target.rule, *_matrices(one)))
  module = lambda tensor: tensor.removesuffix('.weight')
  pairs = {module(k): _join(v) for k, v in joined.items()}
  tensors = {f'{ROOT}{k}{x}': m for k, pair in pairs.items()
             for x, m in zip((A, B), pair, strict=True)}  # fmt: skip
  whole = dict(_whole(variables['params'].get(TRAINED, {}), rules, name))
  tensors |= {f'{ROOT}{k.removeprefix(prefix)}': v for k, v in whole.items()}
  ranks = {k: a.shape[0] for k, (a, _) in pairs.items()}
  config = _config(lora, ranks, _all_modules(rules, prefix, lora))
  kinds = [kind for suffix, kind in TASKS if name.endswith(suffix)]
  config |= {
    'base_model_name_or_path': base or None,
    'task_type': kinds[0] if kinds else None,
    'fan_in_fan_out': known.family.model_type == 'gpt2',
    'modules_to_save': sorted({k.removeprefix(prefix).rpartition('.')[0] for k in whole}) or None,
  }
  digest = base_digest(variables)
  if jax.process_index() == 0:
    _write(folder, config, tensors, digest)


def _matrices(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Returns lora_A [r, inputs] and lora_B [outputs, r] of one layer."""
  a, b = np.asarray(parts[lowrank.A]), np.asarray(parts[lowrank.B])
  if lowrank.SINGULAR in parts:
    a = a * parts[lowrank.SINGULAR]
  return a.reshape(-1, a.shape[-1]).T, b.reshape(b.shape[0], -1).T


def _join(pieces: list[tuple[Rule, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
  """Joins the adapters of the parts of a tensor: A's below each other, B's in their own rows."""
  rank, start = sum(a.shape[0] for _, a, _ in pieces), 0
  whole, _, first = pieces[0]
  b = np.zeros((first.shape[0] * whole.parts, rank), np.float32)
  for rule, _, own_b in pieces:
    rows, columns = own_b.shape
    b[rule.part * rows : (rule.part + 1) * rows, start : start + columns] = own_b
    start += columns
  return np.ascontiguousarray(np.concatenate([a for _, a, _ in pieces])), b


def _whole(trained: Any, rules: Mapping[str, Rule], name: str) -> Iterator[tuple[str, Any]]:
  """Yields (tensor, value) of the parameters that train whole."""
  for where, (leaf, layer) in layers_apart(trained).items():
    target = target_of(where, leaf, rules)
    if not target.rule or target.rule.parts > 1:
      raise InputError(f'train: {where}: a {name} of transformers has no tensor of its own for it')
    value = tree.fetch(leaf if layer is None else leaf[layer])
    yield target.tensors[0], np.ascontiguousarray(target.rule.save(value))


def _all_modules(rules: Mapping[str, Rule], prefix: str, lora: LoRA) -> set[str]:
  core = lora.model.encoder if isinstance(lora.model, bert.HEADED) else lora.model
  tensors = {rule.tensor for rule in rules.values()}
  return {t.replace('*', str(i)).removeprefix(prefix).rpartition('.')[0]
          for t in tensors for i in range(core.depth)}  # fmt: skip


def _config(lora: LoRA, ranks: Mapping[str, int], modules: Iterable[str]) -> dict[str, Any]:
  """Returns adapter_config.json without what depends on the architecture.

  Args:
    lora: of the task.
    ranks: module -> rank of its adapter.
    modules: all modules of the model.
  """
  rank = max(ranks.values())
  alpha = lambda r: lora.scale * (math.sqrt(r) if lora.rslora else r)
  others = {k: r for k, r in ranks.items() if r != rank}
  return {
    'peft_type': 'LORA',
    'r': rank,
    'lora_alpha': alpha(rank),
    'lora_dropout': lora.dropout,
    'use_rslora': lora.rslora,
    'bias': 'none',
    'target_modules': _suffixes(ranks, modules),
    'rank_pattern': {re.escape(k): r for k, r in others.items()},
    'alpha_pattern': {re.escape(k): alpha(r) for k, r in others.items()},
    'inference_mode': True,
  }


def _suffixes(own: Mapping[str, int], modules: Iterable[str]) -> list[str]:
  """Returns the shortest ends of names that select exactly these modules."""
  found: set[str] = set()
  for name in own:
    words = name.split('.')
    ends = ['.'.join(words[-n:]) for n in range(1, len(words) + 1)]
    selects = lambda end: {m for m in modules if m == end or m.endswith(f'.{end}')}
    found.add(next(end for end in ends if selects(end) <= own.keys()))
  return sorted(found)


def _write(
  folder: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, Any], digest: str
) -> None:
  draft = folder.with_name(f'{folder.name}.part')
  shutil.rmtree(draft, ignore_errors=True)
  draft.mkdir(parents=True)
  save_file(dict(tensors), draft / WEIGHTS, {'format': 'pt', BASE: digest})
  write_json(draft / CONFIG, config)
  if folder.is_dir():
    folder.rmdir()
  draft.replace(folder)
