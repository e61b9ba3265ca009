"""Pairs of an image and a caption: examples, and the tokens of captions."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.data import Resident, Spec, Stateful
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch, Metadata
from bmx.data.digests import digest_arrays
from bmx.data.text.encoding import encode_rows
from bmx.data.text.tokenizer import Subwords
from bmx.data.text.windows import along, tokenizer_state
from bmx.ops.ranks import ranks_of

log = logging.getLogger('bmx')
BEST = 5  # captions of an image in a prediction


def pair_spec(shape: tuple[int, ...], length: int) -> dict[str, Spec]:
  """Returns the specs of an image and its caption."""
  return {
    'weights': Spec((), np.dtype(np.float32)),
    'image': Spec(shape, np.dtype(np.float32)),
    'tokens': along(length),
    'caption': Spec((), np.dtype(np.int32)),
  }


def encode_captions(
  tokenizer: Subwords, texts: Sequence[str], length: int
) -> tuple[np.ndarray, int]:
  """Encodes captions -> (tokens int32 [N, length], the id that ends a text).

  Raises InputError if the tokenizer adds no token behind a text.
  """
  suffix = tokenizer.template.suffix
  if not suffix:
    raise InputError(
      'captions: the tokenizer adds no token behind a text ([SEP] or <|endoftext|>), whose state '
      'is the embedding; use that of an encoder or of a CLIP, or give tokenizer.json a '
      'post_processor such as TemplateProcessing'
    )
  arrays, cut = encode_rows(tokenizer, texts, length)
  if cut:
    log.info('captions: %d of %d are longer than %d tokens and cut', cut, len(texts), length)
  return arrays['tokens'], suffix[0]


def paired(
  images: Any,
  texts: Sequence[str],
  chosen: np.ndarray,
  tokenizer: Subwords,
  length: int,
) -> 'CaptionData':
  """Returns examples of images with their captions.

  Args:
    images: the chosen examples.
    texts: captions of the whole set: equal ones have one number in every split.
    chosen: examples of the set, int [N].
    tokenizer: of the captions.
    length: tokens of a caption.
  """
  number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
  own = [texts[int(i)] for i in chosen]
  tokens, end = encode_captions(tokenizer, own, length)
  arrays = {'tokens': tokens, 'caption': np.array([number[text] for text in own], np.int32)}
  facts = {'vocab_size': tokenizer.size, 'length': length, 'end_token': end}
  return CaptionData(images, arrays, tuple(own), tokenizer, facts)


@dataclasses.dataclass
class CaptionData:
  """Examples of images, each with a caption.

  Attributes:
    images: the examples.
    arrays: `tokens` int32 [N, T] and `caption` int32 [N].
    texts: the captions.
    tokenizer: that made the tokens.
    facts: metadata besides those of the images.
  """

  images: Any
  arrays: HostBatch
  texts: tuple[str, ...]
  tokenizer: Subwords
  facts: Metadata

  def __post_init__(self):
    own = pair_spec((), self.arrays['tokens'].shape[1])
    self.spec = {**self.images.spec, **{k: own[k] for k in self.arrays}}

  @property
  def size(self) -> int:
    """Number of pairs."""
    return len(self.texts)

  @property
  def metadata(self) -> Metadata:
    """Facts of the images and of the captions."""
    return {**self.images.metadata, **self.facts}

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Returns rows of images, augmented in training, with their captions."""
    return self.images.rows(indices, positions) | {k: v[indices] for k, v in self.arrays.items()}

  def resident(self) -> HostBatch | None:
    """Returns all arrays, if those of the images may be held on the device."""
    found = self.images.resident() if isinstance(self.images, Resident) else None
    return None if found is None else found | self.arrays

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Gathers rows of the arrays on the device."""
    return self.images.gather(arrays, indices)

  def state(self) -> dict[str, Any]:
    """How files become arrays, and the tokenizer."""
    pixels = self.images.state() if isinstance(self.images, Stateful) else {}
    return pixels | tokenizer_state(self.tokenizer)

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """The files of the images, where they are files, and the captions."""
    known = self.images.describe(indices)
    return [about | {'caption': self.texts[i]} for about, i in zip(known, indices, strict=True)]

  def digest(self) -> str:
    """Returns the SHA-256 of images and captions."""
    total = hashlib.sha256(self.images.digest().encode())
    total.update(digest_arrays(self.arrays).encode())
    return total.hexdigest()

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """Returns, for each image, the best captions of the set and the rank of its own, from 1."""
    image, caption = predictions['image'], self.arrays['caption']
    distinct, first = np.unique(caption, return_index=True)
    text = predictions['text'][first]
    ranks = ranks_of(image, caption, text, distinct)
    lines = []
    for n, about in enumerate(self.describe(np.arange(self.size))):
      scores = text @ image[n]
      best = np.argsort(-scores, kind='stable')[:BEST]
      found = {self.texts[first[i]]: float(scores[i]) for i in best}
      similarity = float(predictions['text'][n] @ image[n])
      more = {'similarity': similarity, 'rank': int(ranks[n]) + 1, 'captions': found}
      lines.append({'row': n + 1, **about, **more})
    return lines
