"""Sequence-to-sequence learning: translation, summarization, transcription."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, HostBatch, Metadata, Variables, facts_of
from bmx.models.seq2seq import EncoderDecoder
from bmx.ops.beams import beam_search
from bmx.ops.checks import check_ids
from bmx.ops.losses import cross_entropy
from bmx.tasks.common import counts, find
from bmx.tasks.language import CausalLM


@dataclasses.dataclass(frozen=True)
class Seq2SeqLM(CausalLM):
  """Next-token cross-entropy of the target, given the source; predictions are decoded texts.

  Reads the `sources` of the model, and of the target what `CausalLM` reads. The loss is in nats
  per token, without label smoothing in evaluations.

  Attributes:
    smoothing: share of the target that training moves to the uniform distribution.
    num_beams: of predictions; 1 is greedy.
    length_penalty: exponent of the length that divides the log-probability of a text.
    max_new_tokens: of a prediction.
    metadata: of the data: `ends`, the ids that end a text.

  Raises:
    InputError: a number is out of range; the model is not an EncoderDecoder.
  """

  smoothing: float = 0.0
  num_beams: int = 4
  length_penalty: float = 1.0
  max_new_tokens: int = 128
  metadata: Metadata = dataclasses.field(default_factory=dict, repr=False, compare=False)

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.model, EncoderDecoder):
      raise InputError(f'task.model={type(self.model).__name__}: expected an encoder-decoder such '
                       'as bmx.models.seq2seq:Seq2Seq')  # fmt: skip
    check_number('smoothing', self.smoothing, at_least=0, below=1)
    check_number('num_beams', self.num_beams, at_least=1)
    check_number('max_new_tokens', self.max_new_tokens, at_least=1)
    check_number('length_penalty', self.length_penalty)

  @property
  def loss_method(self) -> str | None:
    return None if self.smoothing else super().loss_method

  @property
  def decodes(self) -> bool:
    return True

  def validate(self, metadata: Metadata) -> None:
    super().validate(metadata)
    begin = metadata.get('begin')
    if isinstance(begin, Sequence) and not self.model.begins(begin):
      wanted = ', '.join(map(str, self.model.begin))
      language = (
        ', with the id of the language second'
        if self.model.begin_length > len(self.model.begin)
        else ''
      )
      raise InputError(f'data.begin={tuple(begin)}: expected ({wanted}), the ids that targets of '
                       f'the model begin with{language}; set --config.data.begin')  # fmt: skip
    if isinstance(begin, int) and begin != self.model.begin[0]:
      raise InputError(
        f'data.begin={begin}: expected {self.model.begin[0]}, the id that targets of the model '
        f'begin with; set --config.data.begin={self.model.begin[0]}'
      )
    longest, rows = facts_of(self.model).max_source_len, metadata.get('source_length', 0)
    if longest and rows > longest:
      raise InputError(
        f'source_length={rows}: expected rows of at most max_source_len={longest} tokens'
      )

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    super().check_rows(rows, numbers)
    if 'source' in rows and np.issubdtype(rows['source'].dtype, np.integer):
      check_ids('source', rows['source'], facts_of(self.model).vocab_size, numbers)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return self._source(batch), *super().inputs(batch)

  def _source(self, batch: Batch) -> dict[str, Array]:
    find(batch, self.model.sources[0])
    return {k: batch[k] for k in self.model.sources if k in batch}

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    if not (train and self.smoothing):
      return super().score(out, batch, train=train)
    targets, weights = find(batch, 'targets'), batch['weights']
    total, count = weighted(cross_entropy(out, targets, self.smoothing), weights)
    return total, count, {'accuracy': counts(out.argmax(-1) == targets, weights)}

  def decode(self, params: Variables, batch: Batch) -> dict[str, Array]:
    """Decodes each source: 'prediction' int32 [B, N], -1 behind the text; 'score' [B]."""
    model, convert = self.model.for_decoding()
    variables = convert({'params': params})
    source = self._source(batch)
    longest = facts_of(model).max_seq_len
    steps = self.max_new_tokens
    steps = min(steps, longest - model.begin_length) if longest else steps

    def logits(hidden):
      return model.apply(variables, hidden[:, -1:], method='logits')[:, 0]

    def extend(tokens, cache):
      hidden, cache = model.apply(variables, tokens, cache, method='extend')
      return logits(hidden), cache

    slots = model.begin_length + steps
    first, cache = model.apply(variables, source, slots, method='first_logits')
    ends = tuple(self.metadata.get('ends', ()))
    found = beam_search(
      cache, first, extend, num_beams=self.num_beams, ends=ends,
      length_penalty=self.length_penalty, free=jnp.full(len(first), steps), steps=steps,
    )  # fmt: skip
    ended = jnp.isin(found.ids, jnp.array(ends, jnp.int32))
    return {'prediction': jnp.where(ended, -1, found.ids), 'score': found.score}
