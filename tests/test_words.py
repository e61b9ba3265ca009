"""Prose of the project: phrases that docstrings, comments, messages and pages do without."""

import io
import pathlib
import re
import tokenize

import pytest

from tests.conftest import ROOT

DENIED = (
  r'\b(is|are) no\b(?! longer)',  # "is not", "invalid", "without"
  r'\btold\b',
  r'\bgo(es)? on\b',  # "continues", "resumes"
  r'\blest\b',
  r'\bis (?-i:none)\b',
  r'\bwhat is\b',
  r'\bhouse\b',
  r'\bdoor\b',
  r'\brooms?\b',
)
PATTERN = re.compile('|'.join(DENIED), re.IGNORECASE)

SOURCES = sorted(p for folder in ('bmx', 'configs', 'experiments')
                 for p in (ROOT / folder).rglob('*.py'))  # fmt: skip
PAGES = sorted([
  *ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'experiments').rglob('*.md')
])  # fmt: skip
TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING)}


def name(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def denied(text: str) -> list[str]:
  """Phrases of a text that are on the list, as they stand there."""
  joined = ' '.join(text.split())
  return [m.group() for m in PATTERN.finditer(joined)]


def prose(path: pathlib.Path) -> str:
  """Comments and strings of a module, docstrings among them."""
  tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
  return '\n'.join(token.string for token in tokens if token.type in TEXTS)


@pytest.mark.parametrize('path', SOURCES, ids=name)
def test_sources(path):
  assert not denied(prose(path))


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_pages(path):
  text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
  assert not denied(text)


def test_the_list_finds_them():
  assert denied('dropout=1.2 is no share of units') == ['is no']
  assert denied('the run\n  goes on with what is told') == ['goes on', 'what is', 'told']
  assert not denied('is not; is no longer; households; indoor; broomstick')
