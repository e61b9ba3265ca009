"""Writes folders of models in Hugging Face's format: config.json, safetensors, tokenizer."""

import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from bmx.adapt import meta, pairs, vision, whisper
from bmx.adapt.architectures import ARCHITECTURES
from bmx.adapt.configs import describe
from bmx.adapt.layouts import Rule
from bmx.adapt.preprocessor import NAME as PROCESSOR
from bmx.adapt.seq2seq import GENERATED, is_gated
from bmx.adapt.tensors import COUNTER, INDEX, SINGLE, STATISTIC, target_of
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.data.text.chat_template import NAME as TEMPLATE
from bmx.data.text.special import CONFIG, GENERATION
from bmx.data.text.tokenizer import Subwords
from bmx.models import bert
from bmx.models.clip import CLIP
from bmx.models.gpt import GPT
from bmx.models.seq2seq import EncoderDecoder, Seq2Seq
from bmx.models.stack import layers_apart
from bmx.models.whisper import Whisper
from bmx.ops.attention import reference_attention
from bmx.parallel import unbox, use
from bmx.runtime import processes
from bmx.runtime.files import write_json

Folder = str | os.PathLike[str]


def save(
  folder: Folder,
  model: nn.Module,
  params: tree.Tree,
  tokenizer: str | Subwords = '',
  dtype: str = 'float32',
  shard_bytes: int = 5 * 2**30,
  labels: Sequence[str] = (),
  architecture: str = '',
  special: Mapping[str, int | Sequence[int]] | None = None,
  statistics: tree.Tree | None = None,
  processor: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder for `from_pretrained` of transformers; the host holds one file at a time.

  Collective: every process must call; the first one writes.

  Args:
    folder: must be missing or empty; it appears when all of it is written.
    model: a GPT, a BERT, or one with a head; a Seq2Seq or a Whisper; a ResNet, a ViT or a CLIP.
    params: of the model, stacked or not.
    tokenizer: a tokenizer, such as `bmx.data.text.tokenizer.load` reads, or the text of a
      tokenizer.json. Transformers encodes with it as it is.
    dtype: of the tensors, 'float32', 'bfloat16' or 'float16'.
    shard_bytes: largest size of a file; a larger tensor has a file of its own.
    labels: names of the classes or tags by number, `id2label`; default LABEL_0, LABEL_1, ...
    architecture: class of transformers, if several have the parameters of the model: a Tagger
      is written as a token classifier unless this is BertForQuestionAnswering or its like.
    special: ids 'bos', 'eos' (one or several) and 'pad' that config.json and generation_config.json
      name; default: those of the tokenizer.
    statistics: running statistics of batch norms, the collection 'batch_stats'.
    processor: content of preprocessor_config.json, see `preprocessor.content`.

  Raises:
    InputError: a model without an architecture of transformers; parameters of another model; a
      folder that is not empty.
  """
  folder = local(folder).resolve()
  if dtype not in ('float32', 'bfloat16', 'float16'):
    raise InputError(f"dtype {dtype!r} is not 'float32', 'bfloat16' or 'float16'")
  there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
  if processes.anywhere(there):
    raise InputError(f'{folder} is there already: name another folder, or remove it')
  config = describe(model, labels, architecture) | {'dtype': dtype}
  coder = Subwords(tokenizer) if isinstance(tokenizer, str) and tokenizer else tokenizer or None
  ids = meta.special_ids(coder) if special is None else meta.plain_ids(special)
  # RoBERTa's says where its positions begin.
  keys = ARCHITECTURES[config['architectures'][0]].family.keys
  config |= meta.token_keys(ids, pad='first_position' not in keys)
  pieces = _pieces(model, params, statistics or {}, config['architectures'][0])
  if isinstance(model, vision.MODELS):
    config['num_channels'] = vision.image(model, params).shape[-1]
  if isinstance(model, CLIP):
    pairs.complete(config, model, params, ids)
  if isinstance(model, Whisper):
    whisper.complete(config, model, params)
  width = np.dtype(dtype).itemsize
  sizes = {name: width * sum(piece.size for piece in some) for name, some in pieces.items()}
  files = _files(sizes, shard_bytes)
  draft = folder.with_name(f'{folder.name}.part')
  first = jax.process_index() == 0
  if first:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
  for file, names in files.items():
    _write(draft / file if first else None, {name: pieces[name] for name in names}, dtype)
  if first:
    _finish(draft, config, files, sum(sizes.values()), coder, _kinds(model) > 1)
    if isinstance(model, GPT | EncoderDecoder):
      generation = {k: config[k] for k in (*GENERATED, *whisper.GENERATED) if k in config}
      write_json(draft / GENERATION, {f'{k}_token_id': v for k, v in ids.items()} | generation)
    if processor:
      write_json(draft / PROCESSOR, processor)
    draft.replace(folder)


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A parameter, or one layer of a stacked one: the content of a tensor, or a part of it."""

  rule: Rule
  leaf: Any
  layer: int | None
  rows: int | None  # of a table: those of its padding stay here

  @property
  def size(self) -> int:
    shape = self.leaf.shape if self.layer is None else self.leaf.shape[1:]
    if not shape:
      return 1
    return math.prod(shape) // shape[0] * len(range(shape[0])[: self.rows])

  def array(self) -> np.ndarray:
    # A copy: the host value of an array is cached with it, and would fill the host with the model.
    leaf = jnp.copy(self.leaf) if self.layer is None else self.leaf[self.layer]
    value = tree.fetch(leaf)
    return self.rule.save(value if self.rows is None else value[: self.rows])


# By the tensor's name; side by side in its last dimension. [] is a counter, which is 0.
Pieces = dict[str, list[_Piece]]


def _pieces(model: Any, params: tree.Tree, statistics: tree.Tree, name: str) -> Pieces:
  """Returns the content of each tensor. Raises InputError for parameters of another model."""
  given = layers_apart(params) | layers_apart(statistics)
  shape = lambda leaf, layer: list(leaf.shape if layer is None else leaf.shape[1:])
  has = {k: shape(*v) for k, v in given.items()}
  expected = {k: shape(*v) for k, v in _shapes(model, params).items()}
  # The pooler of a bare encoder is optional.
  expected = {k: v for k, v in expected.items() if k in has or not k.startswith('pooler/')}
  lines = tree.difference(has, expected)
  if lines:
    raise InputError('\n  '.join(['these are not the parameters of the model:', *lines]))
  family = ARCHITECTURES[name].family
  prefix = family.prefix if ARCHITECTURES[name].bare else ''
  gated = is_gated(model)
  rules, pieces = ARCHITECTURES[name].rules(isinstance(model, bert.HEADED), gated), {}
  for key, (leaf, layer) in given.items():
    target = target_of(key, leaf, rules)
    if not target.rule:  # a pooler of a family without
      raise InputError(f'{key} {list(leaf.shape)}: a {name} of transformers has no such parameter')
    tensor = target.tensors[0].removeprefix(prefix)
    rows = model.facts.vocab_size if 'v' in target.rule.dims else None
    pieces.setdefault(tensor, []).append(_Piece(target.rule, leaf, layer, rows))
  counters = [STATISTIC.sub(COUNTER, k) for k in pieces if STATISTIC.fullmatch(k)]
  pieces = {k: sorted(v, key=lambda piece: piece.rule.part) for k, v in pieces.items()}
  return pieces | {k: [] for k in counters}


def _joined(pieces: Sequence[_Piece], dtype: str) -> np.ndarray:
  if not pieces:
    return np.zeros((), np.int64)
  arrays = [piece.array().astype(dtype, copy=False) for piece in pieces]
  along = pieces[0].rule.along
  return np.asarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, along), order='C')


def _shapes(model: Any, params: tree.Tree) -> dict[str, tuple[Any, int | None]]:
  """Returns the expected parameters and running statistics, as `layers_apart` names them."""
  given: tuple[Any, ...] = (jax.ShapeDtypeStruct((1, 1), jnp.int32),)
  if isinstance(model, vision.MODELS):
    given = (vision.image(model, params),)
  if isinstance(model, CLIP):
    given = (pairs.image_of(model, params), *given)
  call = (lambda m, x: m.pool(m(x))) if isinstance(model, bert.BERT) else None
  if isinstance(model, Seq2Seq):
    call = lambda m, x: m({'source': x}, x)
  if isinstance(model, Whisper):
    features = jnp.zeros((1, 2, whisper.mels(params)))
    call = lambda m, x: m({'features': features}, x)
  init = lambda key, *x: model.init(key, *x, method=call)
  with reference_attention(), use(None):
    made = unbox(jax.eval_shape(init, jax.random.PRNGKey(0), *given))
  return layers_apart(made['params']) | layers_apart(made.get('batch_stats', {}))


def _kinds(model: Any) -> int:
  """Returns the number of token types that a model distinguishes."""
  core = model.encoder if isinstance(model, bert.HEADED) else model
  return core.types if isinstance(core, bert.BERT) else 0


def _files(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
  """Assigns tensors to files: file -> names of its tensors. sizes, limit: bytes."""
  files, room = [[]], limit
  for name, size in sizes.items():
    if files[-1] and size > room:
      files.append([])
      room = limit
    files[-1].append(name)
    room -= size
  if len(files) == 1:
    return {SINGLE: files[0]}
  return {f'model-{i:05}-of-{len(files):05}.safetensors': x for i, x in enumerate(files, 1)}


def _write(path: pathlib.Path | None, pieces: Pieces, dtype: str) -> None:
  """Writes one file. Collective: all processes fetch the tensors; one with a path writes them."""
  arrays = {name: _joined(some, dtype) for name, some in pieces.items()}
  if path is None:
    return
  save_file(arrays, path, {'format': 'pt'})  # transformers reads only files with this mark
  path.chmod(path.parent.stat().st_mode & 0o666)  # the library makes it its owner's only
  with path.open('rb') as file:
    os.fsync(file.fileno())


def _finish(
  draft: pathlib.Path,
  config: Mapping[str, Any],
  files: Mapping[str, list[str]],
  total: int,
  tokenizer: Subwords | None,
  types: bool,
) -> None:
  """Writes all but the tensors. total: their bytes; types: whether the model reads types."""
  if tokenizer:
    (draft / 'tokenizer.json').write_text(tokenizer.text, encoding='utf-8')
    write_json(draft / CONFIG, meta.tokenizer_config(tokenizer, types))
    if tokenizer.chat_template:
      (draft / TEMPLATE).write_text(tokenizer.chat_template, encoding='utf-8')
  if len(files) > 1:
    places = {name: file for file, names in files.items() for name in names}
    write_json(draft / INDEX, {'metadata': {'total_size': total}, 'weight_map': places})
  write_json(draft / 'config.json', config)
