"""Inputs of a decoder: weights in decoding form, padded prompts, prefill in chunks.

B rows (a multiple of the devices that hold the batch), P slots of a padded prompt, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Decoder, Facts, Variables, facts_of
from bmx.models.seq2seq import EncoderDecoder
from bmx.ops.slots import SlotCache
from bmx.parallel import Layout, jit

PREFILL_CHUNK = 512  # tokens of a prompt per forward pass: scores are [PREFILL_CHUNK, slots]
PROMPT_MULTIPLE = 16  # prompts are padded to a multiple of it, so that few programs are compiled

Prompts = Sequence[Sequence[int]]  # token ids of each row, of unequal length
Inputs = Prompts | Mapping[str, Any]


@runtime_checkable
class DecodingForm(Protocol):
  """A model whose form for decoding differs from its form for training."""

  def for_decoding(self, cache: str = 'auto') -> tuple[Decoder, Callable[[Variables], Variables]]:
    """Returns the model that decodes, and a function from the training form's variables to its.

    `cache` is the config word `generate.cache`.
    """
    ...


@runtime_checkable
class SlotDecoder(Protocol):
  """A decoder whose rows can begin and end on their own."""

  def slot_cache(self, rows: int, slots: int) -> SlotCache:
    """Returns an empty cache; `extend` takes it."""
    ...


def decoder(
  model: Any,
  params: Variables,
  layout: Layout,
  cache: str = 'auto',
  quantized: Variables | None = None,
) -> tuple[Decoder, Variables]:
  """Returns the model and its variables in the form that decodes; see `decoding_form`.

  Args:
    model: a `Decoder` that declares `facts`.
    params: its plain weights.
    layout: mesh and rules.
    cache: the config word `generate.cache`.
    quantized: kernels that `params` lacks, as they are stored; they stay so on the device.
  """
  plain, convert = decoding_form(model, layout, cache)
  return plain, convert(decoding_variables(params, quantized))


def decoding_variables(params: Variables, quantized: Variables | None = None) -> Variables:
  """Returns the variables of a decoder: 'params', and 'quantized' if there are stored kernels."""
  return {'params': params} | ({'quantized': quantized} if quantized else {})


def decoding_form(
  model: Any, layout: Layout, cache: str = 'auto'
) -> tuple[Decoder, Callable[[Variables], Variables]]:
  """Returns the model that decodes, and the compiled function from a model's variables to its.

  Raises InputError as `check_decoder` does, or if the model has another cache only.
  """
  check_decoder(model, layout)
  if not isinstance(model, DecodingForm):
    if cache != 'auto':
      raise InputError(
        f'generate.cache={cache!r}: expected auto; {type(model).__name__} has its own cache'
      )
    return model, lambda variables: variables
  plain, convert = model.for_decoding(cache)
  return plain, jit(convert, layout)


def check_decoder(model: Any, layout: Layout) -> None:
  """Raises InputError if a model is not a decoder, or the mesh or the processes exclude it."""
  if not isinstance(model, Decoder):
    raise InputError(
      f'{type(model).__name__} cannot generate: expected a decoder such as bmx.models.gpt:GPT'
    )
  facts_of(model)
  for axis in ('pipe', 'seq'):
    if layout.mesh.shape[axis] > 1:
      raise InputError(
        f'mesh.{axis}={layout.mesh.shape[axis]}: expected 1, since generation runs on data, fsdp '
        f'and model axes; set --config.mesh.{axis}=1'
      )
  if jax.process_count() > 1:
    raise InputError(
      f'processes={jax.process_count()}: expected 1 for generation; start it on one host'
    )


def check_reads_text(model: Any) -> None:
  """Raises InputError if a model writes texts of something that is not text."""
  if isinstance(model, EncoderDecoder) and not model.reads_text:
    raise InputError(
      f'{type(model).__name__} reads {model.sources[0]}, not text: expected bmx predict, which '
      'writes its texts; bmx predict RUN --input=FOLDER'
    )


class Padded(NamedTuple):
  """Inputs of `Decoder.prefill`, padded to whole shards of the batch.

  Attributes:
    arrays: 'tokens' int32 [B, P], padded on the left; 'first' int32 [B], the slot of each row's
      first token; every other input, [B, ...].
    rows: rows that were given, at most B; the others repeat the first.
    prompts: ids of each row's prompt.
    prompt_lengths: int [B], tokens of each row's prompt.
  """

  arrays: dict[str, Any]
  rows: int
  prompts: Prompts
  prompt_lengths: np.ndarray

  @property
  def signature(self) -> Any:
    """Hashable shapes and dtypes: equal signatures run the same compiled program."""
    return signature(self.arrays)


def signature(arrays: Any) -> Any:
  """Returns the structure, shapes and dtypes of a pytree, hashable."""
  leaves, structure = jax.tree.flatten(arrays)
  return structure, tuple((x.shape, str(x.dtype)) for x in leaves)


def pad(
  inputs: Inputs,
  model: Any,
  layout: Layout,
  begin: Sequence[int] = (),
  row: int = 0,
  multiple: int = PROMPT_MULTIPLE,
) -> Padded:
  """Pads inputs: prompts on the left to one length, rows to a multiple that the mesh divides.

  Args:
    inputs: token prompts; or a mapping of the inputs of `Decoder.prefill`, each a pytree of arrays
      with a leading batch dimension. A mapping may hold prompts as 'tokens'.
    model: a decoder.
    layout: mesh and rules.
    begin: the prompt of every row of a mapping without 'tokens'.
    row: number of the first row, for messages.
    multiple: of the padded length; inputs without token prompts are not padded.

  Raises:
    InputError: no rows, a prompt is empty, leaves no free position or has an id outside the
      vocabulary, or the inputs differ in their number of rows.
  """
  given = dict(inputs) if isinstance(inputs, Mapping) else {'tokens': inputs}
  multiple = multiple if 'tokens' in given else 1
  prompts = given.pop('tokens', None)
  counts = {int(x.shape[0]) for x in jax.tree.leaves(given)}
  if prompts is None:
    if not counts:
      raise InputError('inputs={}: expected token prompts or arrays; give at least one row')
    prompts = [begin] * max(counts)
  if counts - {len(prompts)}:
    raise InputError(
      f'inputs: expected one row per prompt; {len(prompts)} prompts have inputs of '
      f'{", ".join(map(str, sorted(counts)))} rows'
    )
  check_prompts(prompts, facts_of(model), prompt_names(len(prompts), row))
  shards = math.prod(layout.mesh.shape[a] for a in layout.compute['batch'])
  extra = -len(prompts) % shards
  filled = [*prompts, *[prompts[0]] * extra]
  length = -(-max(map(len, filled)) // multiple) * multiple
  ids = np.zeros((len(filled), length), np.int32)
  for n, prompt in enumerate(filled):
    ids[n, length - len(prompt) :] = prompt
  lengths = np.array([len(p) for p in filled])
  repeat = np.concatenate([np.arange(len(prompts)), np.zeros(extra, int)])
  rest = jax.tree.map(lambda x: np.asarray(x)[repeat], given)
  arrays = {**rest, 'tokens': ids, 'first': (length - lengths).astype(np.int32)}
  return Padded(arrays, len(prompts), filled, lengths)


def prompt_names(count: int, row: int = 0) -> list[str]:
  """Returns the names of prompts in messages, 'prompt 1' of row 0."""
  return [f'prompt {row + n}' for n in range(1, count + 1)]


def check_prompts(prompts: Prompts, facts: Facts, names: Sequence[str]) -> None:
  """Raises InputError naming a prompt that a model cannot continue.

  Args:
    prompts: token ids.
    facts: of the model.
    names: of the prompts, for messages.
  """
  if not len(prompts):
    raise InputError('prompts=[]: expected at least one; give --prompt=TEXT or --input=FILE')
  for name, prompt in zip(names, prompts, strict=True):
    if not len(prompt):
      raise InputError(
        f'{name}: expected at least one token to begin with; give a text, or a tokenizer '
        'with a begin-of-sequence token'
      )
    if facts.max_seq_len and len(prompt) >= facts.max_seq_len:
      raise InputError(
        f'{name} has {len(prompt)} tokens: expected fewer than the '
        f'max_seq_len={facts.max_seq_len} of the model; shorten it'
      )
    if min(prompt) < 0 or (facts.vocab_size and max(prompt) >= facts.vocab_size):
      wrong = min(prompt) if min(prompt) < 0 else max(prompt)
      raise InputError(
        f'{name} has token id {wrong}: expected 0 <= id < vocab_size={facts.vocab_size}; '
        "use the model's tokenizer"
      )


def room(model: Any, prompt_lengths: np.ndarray, max_new_tokens: int) -> np.ndarray:
  """Returns how many tokens each row may generate: int32 [B]."""
  limit = facts_of(model).max_seq_len
  free = limit - prompt_lengths if limit else np.full(len(prompt_lengths), max_new_tokens)
  return np.minimum(free, max_new_tokens).astype(np.int32)


def steps_for(free: np.ndarray, max_new_tokens: int, multiple: int = PROMPT_MULTIPLE) -> int:
  """Returns the decoding steps of a program for rows with `free` positions.

  It is a multiple of `multiple`, so that few programs are compiled, at most max_new_tokens.
  """
  return min(-(-int(free.max()) // multiple) * multiple, max_new_tokens)


def prefill(
  model: Any, variables: Variables, arrays: Mapping[str, Any], slots: int
) -> tuple[Any, jax.Array]:
  """Reads the inputs, the prompt in chunks.

  Args:
    model: a decoder.
    variables: see `decoder`.
    arrays: see `Padded`.
    slots: tokens that the cache must hold, padded prompt included.

  Returns:
    The cache, and the logits of the next token [B, V].
  """
  tokens = arrays['tokens']
  head = {**arrays, 'tokens': tokens[:, :PREFILL_CHUNK]}
  hidden, cache = model.apply(variables, head, slots, method='prefill')
  for start in range(PREFILL_CHUNK, tokens.shape[1], PREFILL_CHUNK):
    chunk = tokens[:, start : start + PREFILL_CHUNK]
    hidden, cache = model.apply(variables, chunk, cache, method='extend')
  return cache, next_logits(model, variables, hidden)


def next_logits(model: Any, variables: Variables, hidden: jax.Array) -> jax.Array:
  """Returns logits [B, V] of the token after the last of hidden [B, T, D]."""
  return model.apply(variables, hidden[:, -1:], method='logits')[:, 0]
