"""Tensors of safetensors files, and their conversion to arrays."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from bmx.adapt.families import HEADS, Family
from bmx.adapt.layouts import Rule
from bmx.core.errors import InputError
from bmx.runtime.storage import Place

FLOATS = ('BF16', 'F16', 'F32', 'F64')
CHUNK = 2**26
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
# Buffers that torch models once stored with their weights.
BUFFERS = re.compile(
  r'(.*\.)?(position_ids|token_type_ids|attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq'
  r'|num_batches_tracked)'
)
STATISTIC, COUNTER = re.compile(r'(.*\.)?running_(mean|var)'), r'\1num_batches_tracked'
NUMBER = re.compile(r'(?<=stage_|block_|layer_)\d+(?=/)')
LAYERS, ANY_LAYER = 'stack/blocks/', 'stack/block_*/'


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file."""

  file: pathlib.Path
  name: str
  shape: list[int]
  dtype: str

  def read(self, block: Sequence[slice]) -> np.ndarray:
    # Opened each time: an open file keeps what was read of it in memory.
    with safe_open(self.file, 'np') as file:
      return file.get_slice(self.name)[tuple(block)]


@dataclasses.dataclass(frozen=True)
class Target:
  """A parameter, and the names of its tensors: one for each layer of a stack."""

  name: str
  leaf: Any
  rule: Rule | None
  tensors: tuple[str, ...]
  stacked: bool

  @property
  def sizes(self) -> dict[str, int]:
    dims = self.rule.dims if self.rule else ''
    return dict(zip(dims, self.leaf.shape[self.stacked :], strict=True))

  def problems(self, tensors: Mapping[str, Tensor], body: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each obstacle to reading it. body: the part of the folder's model."""
    if not self.rule:
      yield f'missing  {self.name} {list(self.leaf.shape)}: no tensor is known for it'
      return
    sizes = self.sizes
    shape = self.rule.shape(sizes | {'v': min(sizes.get('v', 0), body.get('vocab_size', 0))})
    side = 'kv_heads' if '/key/' in self.name or '/value/' in self.name else 'heads'
    heads = body.get(side) or body.get('heads')
    if self.name.startswith('encoder/'):
      heads = body.get('encoder_heads') or heads
    for x in self.tensors:
      if x not in tensors:
        yield f'missing  {x} {shape}, for {self.name}'
        continue
      t = tensors[x]
      if t.shape != shape:
        yield f'differs  {t.name}: has {t.shape}, expected {shape}'
      elif t.dtype not in FLOATS:
        yield f'differs  {t.name}: has {t.dtype}, expected one of {", ".join(FLOATS)}'
      elif sizes.get('n', heads) != heads:
        yield f'differs  {t.name}: has {heads} heads, expected {sizes["n"]}'

  def array(self, tensors: Mapping[str, Tensor]) -> jax.Array:
    leaf, sources = self.leaf, [tensors[x] for x in self.tensors]
    if leaf.sharding is None:
      return self._shards(sources, [(0, n) for n in leaf.shape], [None])[0]
    where: dict[Any, list[Any]] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
      ranges = tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
      where.setdefault(ranges, []).append(device)
    shards = [x for ranges, at in where.items() for x in self._shards(sources, ranges, at)]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)

  def _shards(self, sources: list[Tensor], ranges: Any, devices: Sequence[Any]) -> list[jax.Array]:
    """Puts these ranges of the parameter on each of the devices, and frees the host's copy."""
    assert self.rule
    sizes = self.sizes
    if self.stacked:
      sources, ranges = sources[slice(*ranges[0])], ranges[1:]
    labelled = dict(zip(self.rule.dims, ranges, strict=True))
    block = _read(sources, self.rule.cut(sizes, labelled), self.leaf.dtype)
    block = self.rule.load(block, sizes, labelled)
    block = block if self.stacked else block[0]
    return jax.block_until_ready([jax.device_put(block, device) for device in devices])


def _read(sources: list[Tensor], block: list[slice], dtype: Any) -> np.ndarray:
  """Reads [layers, *block]; rows beyond the end of a tensor are zero."""
  real = [slice(*(min(n, size) for n in (s.start, s.stop)))
          for s, size in zip(block, sources[0].shape, strict=True)]  # fmt: skip
  if len(sources) == 1 and real == block:
    return sources[0].read(real)[None].astype(dtype, copy=False)
  whole = np.zeros((len(sources), *(s.stop - s.start for s in block)), dtype)
  if all(s.stop > s.start for s in real):
    for i, source in enumerate(sources):
      whole[(i, *(slice(s.stop - s.start) for s in real))] = source.read(real)
  return whole


def target_of(name: str, leaf: Any, rules: Mapping[str, Rule]) -> Target:
  """Returns the target of a parameter; `rules`: see `Family.rules`."""
  stacked = LAYERS in name
  rule = rules.get(NUMBER.sub('*', name.replace(LAYERS, ANY_LAYER)))
  layers = [[str(i)] for i in range(leaf.shape[0])] if stacked else [NUMBER.findall(name)]
  tensors = tuple(_numbered(rule.tensor, numbers) for numbers in layers) if rule else ()
  return Target(name, leaf, rule, tensors, stacked)


def _numbered(tensor: str, numbers: Sequence[str]) -> str:
  """Replaces each '*' of a name by the next number."""
  for number in numbers:
    tensor = tensor.replace('*', number, 1)
  return tensor


def canonical(found: Mapping[str, Tensor], family: Family, tied: bool) -> dict[str, Tensor]:
  """Returns tensors by their names in transformers 5, without buffers.

  Args:
    found: tensors by their names in the files.
    family: of the architecture.
    tied: whether the head is the table. Copies in `family.copies` of equal values are left out,
      those of heads only then; those of other values stay.
  """
  tensors = {}
  for name, tensor in found.items():
    name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
    name = name.replace('LayerNorm.beta', 'LayerNorm.bias')
    if not name.startswith(family.prefix) and not HEADS.match(name):
      name = family.prefix + name
    if not BUFFERS.fullmatch(name):
      tensors[name] = tensor
  for copy, name in family.copies.items():
    if not tied and copy in heads_of(family):
      continue
    if copy in tensors and name not in tensors:
      tensors[name] = tensors.pop(copy)
    elif copy in tensors and _equal(tensors[copy], tensors[name]):
      del tensors[copy]
  return tensors


def heads_of(family: Family) -> set[str]:
  """Returns the tensors of a family's heads: copies among them are heads that may be untied."""
  return {rule.tensor for rule in family.heads}


def _equal(a: Tensor, b: Tensor) -> bool:
  """Returns whether two tensors hold the same numbers; reads `CHUNK` bytes of each at a time."""
  if a.shape != b.shape or a.dtype not in FLOATS or b.dtype not in FLOATS:
    return False
  row = 8 * math.prod(a.shape[1:])
  rows = max(1, CHUNK // max(1, row))
  blocks = [[slice(i, min(i + rows, a.shape[0]))] for i in range(0, a.shape[0], rows)]
  return all(np.array_equal(a.read(x), b.read(x)) for x in blocks)


def tensors_of(folder: pathlib.Path) -> dict[str, Tensor]:
  """Returns the tensors of a folder, of one or several files. Raises InputError if it has none."""
  if (folder / SINGLE).is_file():
    return contents(folder / SINGLE)
  if not (folder / INDEX).is_file():
    kinds = ('.bin', '.pt', '.pth', '.h5', '.msgpack', '.gguf')
    others = sorted(p.name for p in folder.iterdir() if p.suffix in kinds)
    only = f', only {", ".join(others)}: convert it with transformers' if others else ''
    raise InputError(f'{folder} has no {SINGLE} and no {INDEX}{only}')
  places = read_json(folder / INDEX).get('weight_map')
  if not isinstance(places, dict):
    raise InputError(f'{folder / INDEX} has no weight_map')
  files = sorted({str(file) for file in places.values()})
  absent = [f for f in files if pathlib.Path(f).name != f or not (folder / f).is_file()]
  if absent:
    raise InputError(f'{folder / INDEX} names files that are not there: {", ".join(absent)}')
  found = {name: x for file in files for name, x in contents(folder / file).items()}
  lost = sorted(f'{name} in {file}' for name, file in places.items() if name not in found)
  if lost:
    raise InputError(f'{folder / INDEX} names tensors that are not there: {", ".join(lost)}')
  return found


def contents(path: pathlib.Path) -> dict[str, Tensor]:
  """Returns the tensors of a file by name. Raises InputError if it cannot be read."""
  try:
    with safe_open(path, 'np') as file:
      slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
      return {k: Tensor(path, k, s.get_shape(), s.get_dtype()) for k, s in slices.items()}
  except (SafetensorError, OSError) as error:
    raise InputError(f'{path} is damaged, or no safetensors file: {error}') from None


def read_json(path: Place) -> dict[str, Any]:
  """Reads a JSON object. Raises InputError if the file cannot be read or holds another value."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read: {error}') from None
  if not isinstance(value, dict):
    raise InputError(f'{path} holds no object')
  return value
