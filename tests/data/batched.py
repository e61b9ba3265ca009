"""Batches of what a data factory makes, for tests that look at both."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from bmx.data.batches import Batches


@dataclasses.dataclass(frozen=True)
class Batched(Batches):
  """Batches that also answer for their examples (`arrays`, `tokenizer`, ...)."""

  def __getattr__(self, name: str) -> Any:
    return getattr(object.__getattribute__(self, 'examples'), name)


def batched(factory: Callable[..., Any], batch_size: int, *args: Any, **options: Any) -> Batched:
  """`factory(*args, **options)` in batches, with the seed and the mode that it was given."""
  given = inspect.signature(factory).bind(*args, **options).arguments
  seed, train = given.get('seed', 0), given.get('train', True)
  return Batched(factory(*args, **options), batch_size, seed, train)
