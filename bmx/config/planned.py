"""Recipes that a plan writes: another recipe with words for some devices."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from bmx.config.overrides import apply
from bmx.config.recipes import load
from bmx.config.stored import plain
from bmx.core.errors import InputError

RECIPE = '''"""{title}.

    bmx train --config={file}

Written by `bmx {mode}`; {mode}.json beside it has the figures.
"""

from bmx.config import check_variant, planned


def get_config(variant: str = ''):
  check_variant(variant)
  return planned({recipe!r}, {given!r}, {chosen!r}, {digest!r})
'''


def render(
  title: str,
  mode: str,
  file: pathlib.Path,
  recipe: str,
  given: Sequence[str],
  chosen: Sequence[str],
  digest: str,
) -> str:
  """Returns the text of a recipe that calls `planned`.

  Args:
    title: one line.
    mode: that writes it.
    file: where it is written.
    recipe: see `planned`; so are the other arguments.
    given: of the command.
    chosen: by the mode.
    digest: of the config before `chosen`.
  """
  return RECIPE.format(
    title=title, mode=mode, file=file, recipe=recipe, given=tuple(given), chosen=tuple(chosen),
    digest=digest,
  )  # fmt: skip


def digest(config: Any) -> str:
  """Returns a digest of the words of a config."""
  text = json.dumps(plain(config), sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def planned(recipe: str, given: Sequence[str], chosen: Sequence[str], expected: str) -> Any:
  """Returns the config of a recipe with the words that a plan chose.

  Args:
    recipe: that was planned, with ':VARIANT'.
    given: 'a.b=value' texts that the command of the plan had.
    chosen: 'a.b=value' texts of the plan.
    expected: digest of the config before `chosen`.

  Raises InputError if the recipe has changed since.
  """
  config, _ = load(recipe, given)
  found = digest(config)
  if found != expected:
    raise InputError(
      f'{recipe}: expected the recipe that was planned (digest {expected}, found {found}); give '
      'the command of the planned recipe again'
    )
  apply(config, chosen)
  return config
