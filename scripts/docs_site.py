"""Hook of mkdocs: generates pages, links pages to each other, and checks the built site.

The README becomes the first page, a notebook a page with its stored outputs; recipes and the API
reference come from docstrings.
`mkdocs.yml` names this file; only the functions `on_*` need mkdocs.
"""

import ast
import json
import pathlib
import re
import runpy
from typing import Any

from bmx.config import recipes

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = runpy.run_path(str(ROOT / 'scripts/notebook.py'))
PACKAGES = (
  'config', 'experiment', 'models', 'tasks', 'data', 'optim', 'train', 'serve', 'adapt', 'parallel',
  'ops', 'plan', 'compress', 'privacy', 'export', 'interpret', 'core',
)  # fmt: skip
FUNCTIONS = {
  'load': 'bmx.config.recipes.load',
  'build': 'bmx.experiment.build.build',
  'train': 'bmx.train.loop.run',
  'evaluate': 'bmx.modes.evaluate.evaluate',
  'predict': 'bmx.modes.predict.predict',
}
# Elements and style rules by which a browser fetches a file from another host.
REMOTE = re.compile(
  r'<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["\']?(?:https?:)?//[^>]*>'
  r'|<link\b(?![^>]*\brel=["\']?canonical)[^>]*\bhref=["\']?(?:https?:)?//[^>]*>'
  r'|(?:url\(|@import\s+)["\']?(?:https?:)?//[^)\s]*'
)


def pages() -> dict[str, str]:
  """Returns the generated pages: path below docs/ -> Markdown."""
  made = {'index.md': _readme(), 'configs.md': _recipes(), 'api/index.md': _functions()}
  for path in (ROOT / 'docs').glob('*.ipynb'):
    made[f'{path.stem}.md'] = NOTEBOOK['markdown'](json.loads(path.read_text()))
  return made | {f'api/{name}.md': _package(name) for name in PACKAGES}


def linked(text: str, page: str) -> str:
  """Makes a link of every `docs/NAME.md` in a page, outside blocks of code.

  Args:
    text: Markdown.
    page: its path below docs/; links are relative to it.
  """
  up = '../' * page.count('/')

  def link(match: re.Match[str]) -> str:
    target = ROOT / 'docs' / match.group(1)
    title = re.search(r'^# (.+)$', target.read_text(), re.M) if target.is_file() else None
    return f'[{title.group(1) if title else match.group(1)}]({up}{match.group(1)})'

  parts = re.split(r'(^```.*?^```)', text, flags=re.DOTALL | re.MULTILINE)
  parts[::2] = [re.sub(r'`?\bdocs/(\w+\.md)\b`?', link, part) for part in parts[::2]]
  return ''.join(parts)


def remote(text: str) -> list[str]:
  """Returns the scripts, styles, fonts and images of a page or style sheet on other hosts."""
  return REMOTE.findall(text)


def _readme() -> str:
  """The README with links as seen from docs/."""
  text = (ROOT / 'README.md').read_text().replace('](docs/', '](')
  return text.replace('.ipynb)', '.md)')


def _recipes() -> str:
  """Every recipe: a table of what they reach, then their docstrings."""
  known = [recipes.about(name) for name in recipes.names()]
  rows = [
    f'| [`{r.name}`](#{r.name}) | {", ".join(f"`:{v}`" for v in r.variants)} |'
    f' {r.reaches.removeprefix("Reaches ")} |'
    for r in known
  ]
  table = '\n'.join(['| recipe | variants | reaches |', '|---|---|---|', *rows])
  bodies = [f'## {r.name} {{ #{r.name} }}\n\n{_docstring(recipes.find(r.name))}\n' for r in known]
  return '\n\n'.join(
    ['# Recipes, one by one', 'From the docstrings of `configs/`.', table, *bodies]
  )


def _functions() -> str:
  """The functions that `import bmx` offers, and the packages below them."""
  rows = [f'| `bmx.{name}` | [`{path}`][{path}] |' for name, path in FUNCTIONS.items()]
  modes = [f'::: {path}' for path in FUNCTIONS.values() if path.startswith('bmx.modes')]
  packages = [
    f'| [`bmx.{name}`]({name}.md) | {_docstring(_init(name)).partition(chr(10))[0]} |'
    for name in PACKAGES
  ]
  return '\n'.join([
    '# API reference\n', '| function | defined in |', '|---|---|', *rows, '',
    '| package | content |', '|---|---|', *packages, '', '\n\n'.join(modes), '',
  ])  # fmt: skip


def _package(name: str) -> str:
  """The docstrings of a package's public modules."""
  folder = ROOT / 'bmx' / name
  found = sorted(p for p in folder.rglob('*.py') if not p.name.startswith('_'))
  modules = ['.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in found]
  return '\n\n'.join([
    f'# bmx.{name}', _docstring(_init(name)), *(f'::: {module}' for module in modules)
  ]) + '\n'  # fmt: skip


def _init(package: str) -> pathlib.Path:
  return ROOT / 'bmx' / package / '__init__.py'


def _docstring(path: pathlib.Path) -> str:
  return ast.get_docstring(ast.parse(path.read_text())) or ''


def on_files(files: Any, config: Any) -> Any:
  """Adds the generated pages."""
  from mkdocs.structure.files import File

  for path, text in pages().items():
    files.append(File.generated(config, path, content=text))
  return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Links the pages that a page names."""
  return linked(markdown, page.file.src_uri)


def on_post_build(config: Any) -> None:
  """Raises PluginError if a page or a style sheet needs a file of another host."""
  from mkdocs.exceptions import PluginError

  site = pathlib.Path(config.site_dir)
  for path in sorted([*site.rglob('*.html'), *site.rglob('*.css')]):
    if found := remote(path.read_text()):
      raise PluginError(f'{path.relative_to(site)}: expected files of the site only; {found}')
