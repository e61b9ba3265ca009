"""Fragments of HTML made harmless and whole: sections come from a file that others may write."""

import html
import html.parser
import re

ALLOWED = {
  'a', 'b', 'br', 'caption', 'circle', 'code', 'col', 'dd', 'details', 'div', 'dl', 'dt', 'em',
  'figcaption', 'figure', 'g', 'h3', 'h4', 'hr', 'i', 'img', 'kbd', 'li', 'line', 'mark', 'ol',
  'p', 'path', 'polygon', 'polyline', 'pre', 'rect', 's', 'small', 'span', 'strong', 'sub',
  'summary', 'sup', 'svg', 'table', 'tbody', 'td', 'text', 'tfoot', 'th', 'thead', 'title', 'tr',
  'tspan', 'u', 'ul',
}  # fmt: skip
VOID = {'br', 'col', 'hr', 'img'}
SILENT = {'script', 'style', 'template', 'iframe', 'noscript', 'object'}  # their text is left out
ATTRIBUTES = {
  'align', 'alt', 'class', 'colspan', 'cx', 'cy', 'd', 'fill', 'fill-opacity', 'height', 'open',
  'points', 'preserveaspectratio', 'r', 'role', 'rowspan', 'rx', 'scope', 'src', 'stroke',
  'stroke-dasharray', 'stroke-width', 'style', 'text-anchor', 'title', 'transform', 'viewbox',
  'width', 'x', 'x1', 'x2', 'y', 'y1', 'y2',
}  # fmt: skip
PICTURE = re.compile(r'data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*')
# Colours, sizes and variables; no functions that could load or cover something.
STYLE = re.compile(
  r'((--[a-z]+|color|background|background-color|font-weight|font-style|text-align|width|height|'
  r'max-width|white-space)\s*:\s*[#\w.% -]*;?\s*)*'
)
CASES = {'viewbox': 'viewBox', 'preserveaspectratio': 'preserveAspectRatio'}


def clean(fragment: str) -> str:
  """Returns a fragment with allowed elements and attributes only, and with every element closed.

  Text stays, except that of scripts and styles. Nothing that is left refers outside the page.

  >>> clean('<p onclick=x()>a<script>b</script><a href=//c>d</b>')
  '<p>a<a>d</a></p>'
  """
  cleaner = _Cleaner()
  try:
    cleaner.feed(fragment)
    cleaner.close()
  except (AssertionError, ValueError):  # declarations that html.parser cannot read
    return html.escape(fragment, quote=False)
  return ''.join(cleaner.parts) + ''.join(f'</{tag}>' for tag in reversed(cleaner.open))


class _Cleaner(html.parser.HTMLParser):
  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.parts: list[str] = []
    self.open: list[str] = []
    self.silent = 0

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    self.silent += tag in SILENT
    if tag not in ALLOWED:
      return
    kept = ''.join(
      f' {CASES.get(k, k)}="{html.escape(v or "")}"' for k, v in attrs if _allowed(tag, k, v or '')
    )
    self.parts.append(f'<{tag}{kept}>')
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    self.handle_starttag(tag, attrs)
    self.handle_endtag(tag)

  def handle_endtag(self, tag: str) -> None:
    self.silent = max(0, self.silent - (tag in SILENT))
    if tag not in self.open:
      return
    while (last := self.open.pop()) != tag:
      self.parts.append(f'</{last}>')
    self.parts.append(f'</{tag}>')

  def handle_data(self, data: str) -> None:
    if not self.silent:
      self.parts.append(html.escape(data, quote=False))


def _allowed(tag: str, name: str, value: str) -> bool:
  if name == 'src':
    return tag == 'img' and bool(PICTURE.fullmatch(value))
  if name == 'style':
    return bool(STYLE.fullmatch(value))
  return name in ATTRIBUTES and 'url(' not in value.lower()
