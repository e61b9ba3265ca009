"""The site's pages and links, without the extra `docs`: `.ci/run` builds it with `--strict`."""

import re
import runpy

import pytest
import yaml

from bmx.config import recipes
from tests.conftest import ROOT

SITE = runpy.run_path(str(ROOT / 'scripts/docs_site.py'))
CONFIG = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
WRITTEN = {p.relative_to(ROOT / 'docs').as_posix(): p.read_text()
           for p in (ROOT / 'docs').rglob('*.md')}  # fmt: skip
GENERATED = SITE['pages']()
PAGES = {page: SITE['linked'](text, page) for page, text in (WRITTEN | GENERATED).items()}
LINK = re.compile(r'\]\(([^)\s]+)\)')


def leaves(nav) -> list[str]:
  """Paths of a `nav`, in order."""
  if isinstance(nav, str):
    return [nav]
  entries = nav.values() if isinstance(nav, dict) else nav
  return [path for entry in entries for path in leaves(entry)]


def prose(text: str) -> str:
  """A page without its code."""
  return re.sub(r'```.*?```|`[^`\n]*`|^    .*$', '', text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
  """Names of a page's headings: as given in braces, else as mkdocs makes them."""
  text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
  found = set()
  for title in re.findall(r'^#+ (.+)$', text, re.MULTILINE):
    given = re.search(r'\{ #(\S+) \}', title)
    plain = re.sub(r'[^\w\s-]', '', title).strip().lower()
    found.add(given.group(1) if given else re.sub(r'[-\s]+', '-', plain))
  return found


def test_the_nav_names_every_page_once():
  assert not set(WRITTEN) & set(GENERATED)
  assert sorted(leaves(CONFIG['nav'])) == sorted(PAGES)


@pytest.mark.parametrize('page', sorted(PAGES))
def test_links_lead_to_pages_and_headings(page):
  folder = (ROOT / 'docs' / page).parent
  for link in LINK.findall(prose(PAGES[page])):
    if re.match(r'https?://', link):
      continue
    path, _, anchor = link.partition('#')
    target = (folder / path).resolve() if path else ROOT / 'docs' / page
    name = target.relative_to(ROOT / 'docs').as_posix()
    assert name in PAGES, link
    assert not anchor or anchor in anchors(PAGES[name]), link


def test_pages_that_a_page_names_are_links():
  """None is left as text: neither a page that was renamed nor one that nobody wrote."""
  assert sum(len(LINK.findall(text)) for text in PAGES.values()) > 20
  for page, text in PAGES.items():
    assert not re.search(r'`docs/\w+\.md`', re.sub(r'```.*?```', '', text, flags=re.DOTALL)), page
  missing = SITE['linked']('see `docs/nothing.md`', 'index.md')
  assert missing == 'see [nothing.md](nothing.md)'  # an error of the build and of the test above
  assert SITE['linked']('```\n`docs/tables.md`\n```', 'a.md') == '```\n`docs/tables.md`\n```'
  assert SITE['linked']('docs/tables.md', 'api/data.md').endswith('](../tables.md)')


def test_the_readme_is_one_page_of_links():
  readme = (ROOT / 'README.md').read_text()
  assert len(readme.splitlines()) <= 95
  index = readme.replace('](docs/', '](').replace('first_run.ipynb', 'first_run.md')
  assert GENERATED['index.md'] == index
  named = set(re.findall(r'\]\(docs/([^)#]+)\)', readme))
  assert named >= set(WRITTEN), 'a page of docs/ that the README does not name'
  assert all((ROOT / 'docs' / name).is_file() for name in named)


def test_every_recipe_is_described():
  for name in recipes.names():
    assert f'## {name} {{' in GENERATED['configs.md']
    assert f'--config=configs/{name}.py' in GENERATED['configs.md']


def test_the_reference_names_modules_that_exist():
  named = re.findall(r'^::: (\S+)$', '\n'.join(GENERATED.values()), re.MULTILINE)
  functions = {path for path in SITE['FUNCTIONS'].values() if path in named}
  files = [ROOT / (name.replace('.', '/') + '.py') for name in named if name not in functions]
  assert len(files) > 80
  assert all(file.is_file() for file in files)


REMOTE = (
  '<script src="https://unpkg.com/a.js"></script>',
  '<script async src=//cdn.example/a.js></script>',
  '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Roboto">',
  '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin>',
  '<img alt="" src="http://example.org/badge.svg">',
  'src: url("https://example.org/font.woff2")',
  '@import "https://example.org/a.css";',
)
LOCAL = (
  '<script src="assets/bundle.js"></script>',
  '<link rel="stylesheet" href="assets/main.css">',
  '<link rel="canonical" href="https://example.org/index.html">',
  '<a href="https://github.com/jax-ml/jax">jax</a>',
  '<svg xmlns="http://www.w3.org/2000/svg">',
  'url(\'data:image/svg+xml;charset=utf-8,<svg xmlns="http://www.w3.org/2000/svg"/>\')',
)


def test_files_of_other_hosts_are_found():
  assert all(SITE['remote'](text) for text in REMOTE)
  assert not any(SITE['remote'](text) for text in LOCAL)
