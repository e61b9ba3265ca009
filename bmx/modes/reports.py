"""Pages of commands, and sections that they add to the report of a run."""

import pathlib
from collections.abc import Sequence

from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.runtime import report
from bmx.runtime.files import read_json
from bmx.runtime.report import Section, keep_sections
from bmx.runtime.rows import unique
from bmx.runtime.storage import Place


def add_sections(workdir: Place, name: str, key: str, sections: Sequence[Section]) -> None:
  """Keeps sections and writes the report of a finished run; a run under way writes its own.

  Args:
    workdir: the run directory.
    name: of the run.
    key: of the sections; earlier ones of the same key are replaced.
    sections: at least one.
  """
  keep_sections(workdir, key, list(sections))
  if (workdir / 'summary.json').is_file():
    summary = read_json(workdir / 'summary.json')
    status = 'stopped early' if summary.get('stopped_early') else 'finished'
    report.write(workdir, name, {'status': status} | summary)


def checked_page(output: str) -> pathlib.Path | None:
  """Returns the page that --output names; None where it names none.

  Raises InputError for another suffix or a missing folder.
  """
  if not output:
    return None
  path = local(output)
  if path.suffix != '.html' or not path.parent.is_dir():
    raise InputError(
      f'--output={output}: expected a name that ends with .html, in a folder that exists'
    )
  return path


def own_page(folder: Place, stem: str) -> Place:
  """Returns the path of a new page in a folder, which is made."""
  folder.mkdir(exist_ok=True, parents=True)
  return unique(folder / f'{stem}.html')
