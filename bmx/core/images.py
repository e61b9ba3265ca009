"""Generation of images: the words of `generate` that it reads, and the protocol of its tasks."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Array, Variables

SAMPLERS = ('euler', 'heun')


@dataclasses.dataclass(frozen=True)
class ImageOptions:
  """The words of `generate` that images read, see `bmx.config.words`.

  Attributes:
    label: class of all images; -1: every class in turn.
    count: number of images.
    guidance: of classifier-free guidance: 1 adds nothing, 0 ignores the class.
    sample_steps: steps from noise to an image.
    sampler: one of `SAMPLERS`.

  Raises:
    InputError: a value out of its range.
  """

  label: int = -1
  count: int = 100
  guidance: float = 1.0
  sample_steps: int = 20
  sampler: str = 'heun'

  def __post_init__(self):
    if self.label < -1:
      raise InputError(f'generate.label={self.label}: expected a class, at least 0, or -1 for all')
    for name, value in (('count', self.count), ('sample_steps', self.sample_steps)):
      if value < 1:
        raise InputError(f'generate.{name}={value}: expected {name} >= 1')
    check_number('generate.guidance', self.guidance, at_least=0)
    if self.sampler not in SAMPLERS:
      raise InputError(f'generate.sampler={self.sampler!r}: expected one of {", ".join(SAMPLERS)}')


@runtime_checkable
class ImageGenerator(Protocol):
  """A task that generates images."""

  @property
  def num_classes(self) -> int:
    """Classes that an image can be asked for; 0: images have none."""
    ...

  @property
  def image_words(self) -> Sequence[str]:
    """The words among guidance, sample_steps and sampler that `generate` reads."""
    ...

  def generate(
    self,
    variables: Variables,
    labels: Array,
    keys: Array,
    shape: tuple[int, int, int],
    options: ImageOptions,
  ) -> Array:
    """Returns an image for each key: float32 [n, I, J, C], pixels in [0, 1] but for errors.

    Args:
      variables: 'params', plain.
      labels: int [n].
      keys: uint32 [n, 2]; an image depends on its own key, label and weights only.
      shape: (I, J, C).
      options: numbers of the sampler; constants of the program.
    """
    ...
