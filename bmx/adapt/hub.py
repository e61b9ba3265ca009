"""Reads folders of models in Hugging Face's format: config.json and safetensors."""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from bmx.adapt import positions, whisper
from bmx.adapt.architectures import ARCHITECTURES
from bmx.adapt.configs import architecture, translate
from bmx.adapt.export import save
from bmx.adapt.families import Family
from bmx.adapt.meta import read_labels
from bmx.adapt.positions import POSITION
from bmx.adapt.seq2seq import GENERATED
from bmx.adapt.tensors import (
  INDEX,
  SINGLE,
  STATISTIC,
  Target,
  Tensor,
  canonical,
  heads_of,
  read_json,
  target_of,
  tensors_of,
)
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.paths import how_to_fetch
from bmx.data.text.special import GENERATION, read_ids
from bmx.runtime.fetch import fetch

__all__ = ['labels', 'load', 'part', 'read_ids', 'save', 'statistics']

log = logging.getLogger('bmx')

Folder = str | os.PathLike[str]
STATISTICS = 'batch_stats'


def part(folder: Folder) -> dict[str, Any]:
  """Returns the config part that builds the model of a folder.

  Attention weights have no dropout in bmx, so `attn_pdrop` and the like are ignored.

  Raises:
    InputError: config.json is missing; the architecture is unknown; values are missing, malformed
      or not supported (all are listed).
  """
  folder = fetch(folder)
  return _part(folder, _config(folder))


def labels(folder: Folder) -> tuple[str, ...]:
  """Returns the names of classes or tags by number, the folder's `id2label`; () without it."""
  return read_labels(_config(fetch(folder)))


def load(folder: Folder, abstract: tree.Tree, reinit: str = '') -> dict[str, jax.Array]:
  """Reads the weights of a folder, each into the shards that this process has.

  Reads one shard at a time, layer by layer if layers are stacked: the host holds one shard and its
  part of the file. Rows of a table beyond the folder's vocabulary are zero; positions of patches
  are resized to those of the model.

  Args:
    folder: in Hugging Face's format.
    abstract: the params, of `jax.ShapeDtypeStruct`s; without a sharding: default device.
    reinit: regex of the parameters that are not read.

  Returns:
    Name as in `tree.named` -> array, in the abstract's dtype.

  Raises:
    InputError: see `part`; a folder or a file that cannot be read; tensors that are missing,
      superfluous, of another shape, or not of floats (all are listed); a `reinit` that matches
      no parameter.
  """
  folder = fetch(folder)
  config = _config(folder)
  body = _part(folder, config)
  body = body.get('encoder', body)
  family = ARCHITECTURES[architecture(config)].family
  tied = not any(name.endswith('head/table') for name in tree.named(abstract))
  tensors = canonical(tensors_of(folder), family, tied)
  gated = bool(body.get('gated'))
  rules = ARCHITECTURES[architecture(config)].rules('encoder' in abstract, gated)
  table = tensors.get(rules[POSITION].tensor) if POSITION in rules else None
  wanted, abstract = abstract, positions.as_stored(abstract, table and table.shape[-2])
  targets = {name: target_of(name, leaf, rules) for name, leaf in tree.named(abstract).items()}
  drop = tree.named(tree.mask(abstract, reinit)) if reinit else {}
  taken = {name: target for name, target in targets.items() if not drop.get(name)}
  unused = {x for x in tensors.keys() - _read_by(taken) if not STATISTIC.fullmatch(x)}
  extra = unused - _read_by(targets) - family.copies.keys()
  extra = sorted(x for x in extra if not family.spare.match(x))
  lines = [f'extra    {tensors[x].name} {tensors[x].shape}' for x in extra]
  lines += _other_copies(tensors, family, _read_by(taken))
  towers: dict[str, Any] = {k: v for k, v in body.items() if isinstance(v, Mapping)}  # of a CLIP
  for name, target in taken.items():
    lines += target.problems(tensors, towers.get(name.partition('/')[0], body))
  if lines:
    about = f'{folder} holds other tensors than the model has parameters:'
    text = '\n  '.join([about, *dict.fromkeys(lines)])
    bare = not any(x.name.startswith(family.prefix) for x in tensors.values())
    raise InputError(text.replace(f' {family.prefix}', ' ') if bare else text)
  if unused:
    log.info('%s: not taken: %s', folder, ', '.join(sorted(tensors[x].name for x in unused)))
  return positions.fit({name: target.array(tensors) for name, target in taken.items()}, wanted)


def statistics(
  folder: Folder, collections: Mapping[str, tree.Tree], reinit: str = ''
) -> dict[str, jax.Array]:
  """Reads running means and variances of batch norms: 'batch_stats/NAME' -> array.

  Args:
    folder: see `load`; {} for a family without batch norms.
    collections: the wanted ones, abstract.
    reinit: regex of the names that are not read.

  Raises:
    InputError: tensors that are missing or have another shape.
  """
  wanted = collections.get(STATISTICS, {})
  folder = fetch(folder)
  config = _config(folder)
  found = ARCHITECTURES[architecture(config)]
  rules = found.rules(False)
  if not wanted or not any(STATISTIC.fullmatch(rule.tensor) for rule in rules.values()):
    return {}
  tensors = canonical(tensors_of(folder), found.family, False)
  drop = tree.named(tree.mask(wanted, reinit, required=False)) if reinit else {}
  targets = {
    name: target_of(name, leaf, rules)
    for name, leaf in tree.named(wanted).items()
    if not drop.get(name)
  }
  lines = [line for target in targets.values() for line in target.problems(tensors, {})]
  if lines:
    raise InputError('\n  '.join([f'{folder} holds other statistics than the model has:', *lines]))
  return {f'{STATISTICS}/{name}': target.array(tensors) for name, target in targets.items()}


def _part(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """Calls `translate`; unties the head if the folder holds one that differs from the table."""
  found = translate(config)
  if not found.get('tied') or not ((folder / SINGLE).is_file() or (folder / INDEX).is_file()):
    return found
  family = ARCHITECTURES[architecture(config)].family
  if heads_of(family) & canonical(tensors_of(folder), family, True).keys():
    log.info('%s: tie_word_embeddings=true, but head and table differ: read as untied', folder)
    found['tied'] = False
  return found


def _other_copies(tensors: Mapping[str, Tensor], family: Family, read: set[str]) -> list[str]:
  """Lists copies of tied tensors with other values, if the model has their head."""
  head = any(x.startswith(family.tied_head) for x in read)
  return [
    f'differs  {tensors[copy].name}: expected the values of {name}, which the model shares'
    for copy, name in family.copies.items()
    if head and copy in tensors and copy not in read and name in read
  ]


def _read_by(targets: Mapping[str, Target]) -> set[str]:
  return {x for target in targets.values() for x in target.tensors}


def _config(folder: pathlib.Path) -> dict[str, Any]:
  if not folder.is_dir():
    raise InputError(f'{folder}: expected a directory{how_to_fetch(folder)}')
  if not (folder / 'config.json').is_file():
    raise InputError(f'{folder} has no config.json')
  config = read_json(folder / 'config.json')
  if config.get('is_encoder_decoder') and (folder / GENERATION).is_file():
    generation = read_json(folder / GENERATION)
    if config.get('model_type') == whisper.WHISPER.model_type:
      return whisper.merged(config, generation)
    config |= {k: v for k, v in generation.items() if k in GENERATED}
  return config
