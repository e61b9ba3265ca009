"""Sections: parts of a report that hooks, evaluations and tasks make, kept in sections.json."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from bmx.core.data import Data
from bmx.core.types import HostBatch
from bmx.runtime.files import read_json, tolerated, write_json
from bmx.runtime.storage import Place

DATA = 'data'  # name of the sections of the training data, which come last


class Section(NamedTuple):
  """A part of the report.

  Attributes:
    title: plain text.
    html: a fragment that refers to nothing outside the page. Its author escapes texts of others;
      scripts, links and attributes beyond `fragments.ALLOWED` are left out.
  """

  title: str
  html: str


@runtime_checkable
class HasSections(Protocol):
  """An evaluation with something to show besides its metrics."""

  def sections(self) -> Sequence[Section]:
    """Returns the sections of the newest call."""
    ...


@runtime_checkable
class Illustrating(Protocol):
  """A task with something to show of its predictions besides metrics."""

  def illustrate(self, rows: HostBatch, data: Data) -> Sequence[Section]:
    """Returns sections; () for predictions that it cannot show.

    Args:
      rows: predictions and labels of the first examples of a split, in order.
      data: the split.
    """
    ...


def keep_sections(workdir: Place, name: str, given: Any) -> None:
  """Stores what a hook returned: None, a Section or a sequence of them.

  Args:
    workdir: the run directory.
    name: of the hook; its earlier sections are replaced.
    given: nothing is stored, and the earlier sections stay, for None or an empty list.

  Raises TypeError if it is anything else.
  """
  sections = [given] if isinstance(given, Section) else list(given or ())
  if not all(isinstance(s, Section) for s in sections):
    raise TypeError(f'hook {name} returned {given!r}: expected None, Section or a list of Section')
  if sections and jax.process_index() == 0:
    path = workdir / 'sections.json'
    with tolerated(path):
      write_json(path, stored_sections(workdir) | {name: sections})


def stored_sections(workdir: Place) -> dict[str, list[list[str]]]:
  """Hook -> [title, html] of each of its sections; {} without a whole sections.json."""
  try:
    found = read_json(workdir / 'sections.json')
    return {k: [[str(x) for x in (title, body)] for title, body in v] for k, v in found.items()}
  except (OSError, ValueError, TypeError, AttributeError):
    return {}
