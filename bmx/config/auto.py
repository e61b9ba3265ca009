"""Values 'auto' of a config."""

from collections.abc import Mapping
from typing import Any

from bmx.core.errors import InputError


def settle(
  values: Mapping[str, Any], choices: Mapping[str, Any], where: str = ''
) -> dict[str, Any]:
  """A plain config whose leaves 'auto' are replaced by `choices` of the same key.

  Raises InputError for an 'auto' whose key is not in `choices`.

  >>> settle({'model': {'attention': 'auto', 'width': 8}}, {'attention': 'xla'})
  {'model': {'attention': 'xla', 'width': 8}}
  """

  def settle_leaf(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
      return settle(value, choices, f'{where}{key}.')
    if value != 'auto':
      return value
    if key not in choices:
      raise InputError(f"--config.{where}{key}='auto': only {', '.join(choices)} can be 'auto'")
    return choices[key]

  return {key: settle_leaf(key, value) for key, value in values.items()}
