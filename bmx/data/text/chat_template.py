"""Templates of conversations: the text that a model reads of messages with roles.

A template is a Jinja text, as Hugging Face's `apply_chat_template` renders it. It may come from
strangers, so it runs in Jinja's sandbox and sees plain values only.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from bmx.core.errors import InputError
from bmx.data.records import read_text
from bmx.data.text.special import CONFIG, read_object
from bmx.runtime.storage import Place, place

NAME = 'chat_template.jinja'
CHATML = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
  "'<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMED = {'chatml': CHATML}
PROBE = 'bmx-probe-text'  # an answer that no template contains

Messages = Sequence[Mapping[str, str]]  # each with 'role' and 'content'


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  r"""A Jinja template of conversations.

  >>> ChatTemplate(CHATML).render([{'role': 'user', 'content': 'Hi'}], answer=True)
  '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'

  Attributes:
    text: of the template.
    names: role -> special token; the template sees them as bos_token, eos_token, ...
    source: its file or name, for messages.
  """

  text: str
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  source: str = 'chat template'

  def render(self, messages: Messages, answer: bool = False) -> str:
    """Returns the text of a conversation.

    Args:
      messages: of the conversation.
      answer: also write what precedes an answer (`add_generation_prompt`).

    Raises:
      InputError: the template is malformed, or refuses the messages.
    """
    tokens = {f'{role}_token': token for role, token in self.names.items()}
    plain = [dict(message) for message in messages]
    values = {'messages': plain, 'tools': None, 'documents': None}
    try:
      return self._compiled.render(**tokens, **values, add_generation_prompt=answer)
    except InputError:
      raise
    except Exception as error:  # a template of others may raise anything
      raise InputError(f'{self.source}: {error or type(error).__name__}') from None

  def parts(self, messages: Messages) -> list[tuple[str, bool]]:
    """Cuts the text of a conversation into texts, each with whether the assistant writes it.

    An answer reaches from the end of what precedes it to the end of its turn.

    Raises:
      InputError: the conversation has no answer; the template refuses it, or writes an answer
        otherwise once the conversation continues, so that the answer has no place of its own.
    """
    whole, parts, at = self.render(messages), [], 0
    for n, message in enumerate(messages):
      if message['role'] != 'assistant':
        continue
      before = self.render(messages[:n], answer=True)
      after = self.render(messages[: n + 1])
      if not (whole.startswith(after) and after.startswith(before) and at <= len(before)):
        raise InputError(
          f'{self.source}: expected a template that writes the first {n + 1} messages of a '
          'conversation as it writes the whole; it writes them otherwise, so that the answer '
          f'{message["content"]!r:.40} has no place of its own; use another template, such as '
          'chatml'
        )
      parts += [(whole[at : len(before)], False), (whole[len(before) : len(after)], True)]
      at = len(after)
    if not parts:
      raise InputError("expected at least one message of role 'assistant'")
    parts.append((whole[at:], False))
    assert ''.join(text for text, _ in parts) == whole
    return [(text, learn) for text, learn in parts if text]

  @property
  def end_of_turn(self) -> str:
    """The text after an answer, without blanks around it; '' without one."""
    question = {'role': 'user', 'content': 'a'}
    text = self.render([question, {'role': 'assistant', 'content': PROBE}])
    return text.rpartition(PROBE)[2].strip()

  @functools.cached_property
  def _compiled(self) -> Any:
    jinja2 = library()
    try:
      return _environment().from_string(self.text)
    except jinja2.TemplateSyntaxError as error:
      raise InputError(
        f'{self.source}: expected a Jinja template: line {error.lineno}: {error.message}'
      ) from None


def read(folder: Place) -> str:
  """Returns the template of a folder: chat_template.jinja, else tokenizer_config.json; '' if none.

  Raises InputError if a file cannot be read, or names several templates and none 'default'.
  """
  if (folder / NAME).is_file():
    return read_text(folder / NAME)
  file = folder / CONFIG
  found = read_object(file).get('chat_template') if file.is_file() else None
  if isinstance(found, list):
    try:
      found = {entry['name']: entry['template'] for entry in found}
    except (TypeError, KeyError):
      found = {}
    if 'default' not in found:
      raise InputError(
        f"{file}: chat_template: expected a text, or templates of which one is named 'default'; "
        f'found {", ".join(map(str, found)) or "others"}'
      )
    found = found['default']
  if not isinstance(found, str | None):
    raise InputError(f'{file}: chat_template={found!r:.40}: expected a text')
  return found or ''


def find(name: str) -> str:
  """Returns the text of a template that a config names: 'chatml', or a file.

  Raises InputError if it is neither.
  """
  if name in NAMED:
    return NAMED[name]
  file = place(name)
  if file.is_dir() and (text := read(file)):
    return text
  if not file.is_file():
    raise InputError(
      f'template={name}: expected {", ".join(NAMED)}, a file of a Jinja template, or a folder with '
      f'{NAME} or tokenizer_config.json'
    )
  return read_text(file)


def library() -> Any:
  """Imports `jinja2`. Raises InputError if it is not installed."""
  try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
  except ImportError:
    raise InputError(
      'chat templates need the library jinja2: pip install "bmx-jax[text]"'
    ) from None
  return jinja2


@functools.cache
def _environment() -> Any:
  """Returns the sandbox of templates, with the names that they may use."""
  jinja2 = library()

  class Generation(jinja2.ext.Extension):
    """{% generation %}: marks answers for other libraries; its content is rendered as it is."""

    tags = frozenset(['generation'])

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
      return jinja2.nodes.Scope(body).set_lineno(line)

  class Namespace(jinja2.utils.Namespace):
    """Variables of a template; names of Python's own attributes are refused."""

    def __setitem__(self, name: str, value: Any) -> None:
      checked(name)
      super().__setitem__(name, value)

  def checked(name: str) -> None:
    if name.startswith('_'):
      raise jinja2.exceptions.SecurityError(f'namespace.{name}: expected a name without _ first')

  def namespace(*args: Any, **kwargs: Any) -> Namespace:
    values = dict(*args, **kwargs)
    for name in values:
      checked(name)
    return Namespace(values)

  def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
  )
  environment.filters['tojson'] = _to_json
  environment.globals |= {
    'raise_exception': raise_exception,
    'strftime_now': lambda form: datetime.datetime.now().strftime(form),
    'namespace': namespace,
  }
  return environment


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  """Writes JSON as text for a model: Jinja's own filter escapes characters of HTML."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )
