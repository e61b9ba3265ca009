"""report.html and comparisons of runs: pages of one file that need no network and no server.

Hooks and evaluations add to the report: a hook returns sections, an evaluation has a method
`sections`. The newest sections of each are kept in WORKDIR/sections.json.
"""

from bmx.runtime.report.page import MAX_BYTES, Reports, write
from bmx.runtime.report.sections import DATA, HasSections, Illustrating, Section, keep_sections

__all__ = [
  'DATA',
  'MAX_BYTES',
  'HasSections',
  'Illustrating',
  'Reports',
  'Section',
  'keep_sections',
  'write',
]
