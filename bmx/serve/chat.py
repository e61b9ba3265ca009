"""Conversations with a model: an answer continues the template's text of all messages."""

from collections.abc import Generator

from bmx.core.errors import InputError
from bmx.core.types import facts_of
from bmx.data.text.chat_template import ChatTemplate
from bmx.data.text.documents import whole
from bmx.data.text.protocol import Tokenizer
from bmx.serve.generate import GenerationStats
from bmx.serve.text import TextGenerator


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> str:
  """Returns the text after an answer, as a stop of generation: one special token, or plain text.

  It is '' if the template writes none.
  """
  text = template.end_of_turn
  special = [token for token in tokenizer.hidden if text.startswith(token)]
  if special:
    return max(special, key=len)
  return text[: min((text.index(t) for t in tokenizer.hidden if t in text), default=len(text))]


class Chat:
  """A conversation with a model.

  Args:
    generator: of the answers; the end of a turn is among its stops, see `end_of_turn`.
    template: of conversations.
    seed: of the draws; each answer has draws of its own.

  Attributes:
    messages: those that the next answer reads, of roles 'user' and 'assistant'.
    dropped: messages that were left out, the oldest, as the model's positions do not hold all.
  """

  def __init__(self, generator: TextGenerator, template: ChatTemplate, seed: int = 0):
    self.generator, self.template, self.seed = generator, template, seed
    self.answers = 0
    self.reset()

  def reset(self) -> None:
    """Forgets all messages."""
    self.messages: list[dict[str, str]] = []
    self.dropped = 0

  def answer(self, text: str, stats: GenerationStats | None = None) -> Generator[str, None, None]:
    """Yields the parts of the answer to a message, and remembers both.

    An answer that the caller closes early is remembered as far as it was yielded; without a
    character of it, the message is forgotten too.

    Raises:
      InputError: the message alone is too long for the model, the template refuses it, or it is not
        valid Unicode.
    """
    question = {'role': 'user', 'content': whole(text, 'the message')}
    ids = self._fit(question)
    self.answers += 1
    said, complete = '', False
    try:
      for (part,) in self.generator.continued([ids], self.seed + self.answers, stats):
        part = part if said else part.lstrip()
        said += part
        yield part
      complete = True
    finally:
      if said or complete:
        self.messages = [*self.messages, question, {'role': 'assistant', 'content': said.rstrip()}]

  def _fit(self, question: dict[str, str]) -> list[int]:
    """Drops the oldest turns until the conversation leaves positions for an answer.

    Returns the ids of what precedes the answer.
    """
    limit = facts_of(self.generator.model).max_seq_len
    reserved = min(self.generator.options.max_new_tokens, limit // 2)
    kept = self.messages
    ids = self._ids(kept, question)
    while limit and len(ids) > limit - reserved and kept:
      turns = [n for n, m in enumerate(kept) if n and m['role'] == 'user']
      kept = kept[turns[0] :] if turns else []
      ids = self._ids(kept, question)
    if limit and len(ids) >= limit:
      raise InputError(
        f'the message has {len(ids)} tokens with its template: expected fewer than the '
        f'max_seq_len={limit} of the model; shorten it'
      )
    self.dropped += len(self.messages) - len(kept)
    self.messages = kept
    return ids

  def _ids(self, messages: list[dict[str, str]], question: dict[str, str]) -> list[int]:
    text = self.template.render([*messages, question], answer=True)
    return self.generator.tokenizer.encode([text])[0].tolist()
