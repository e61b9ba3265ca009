"""Texts of tokens that arrive one after another: whole characters, up to a stop text."""

from collections.abc import Sequence

from bmx.data.text.tokenizer import Tokenizer


class Detokenizer:
  """Decodes one row's ids as they arrive; all parts together are the whole text up to its stop.

  Args:
    tokenizer: of the ids.
    stop: texts that end the row.
    before: ids of the prompt; how a token is spelled depends on the one before it.
  """

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], before: Sequence[int] = ()):
    self.tokenizer, self.stop, self.ids = tokenizer, tuple(stop), _settled(tokenizer, before)
    self.start = len(tokenizer.decode(self.ids))
    self.emitted, self.stopped = 0, False

  def add(self, ids: Sequence[int]) -> str:
    """Returns the text that later ids cannot change and that was not returned before."""
    if self.stopped:
      return ''
    self.ids += [int(i) for i in ids]
    text = self._before_stop(self.tokenizer.settled(self.ids)[self.start :])
    # The last characters may begin a stop text.
    begun = [n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])]
    held = 0 if self.stopped else max(begun, default=0)
    return self._emit(text[: len(text) - held])

  def flush(self) -> str:
    """Returns the rest of the text, which `add` held back."""
    if self.stopped:
      return ''
    return self._emit(self._before_stop(self.tokenizer.decode(self.ids)[self.start :]))

  def _before_stop(self, text: str) -> str:
    """Returns the text before the stop text that is complete first; notes whether there is one."""
    places = [(text.find(s) + len(s), text.find(s)) for s in self.stop if s in text]
    self.stopped = bool(places)
    return text[: min(places)[1]] if places else text

  def _emit(self, text: str) -> str:
    new, self.emitted = text[self.emitted :], max(self.emitted, len(text))
    return new


def _settled(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
  """Returns the ids of a prompt without a last character of several bytes.

  Bytes that follow it and are not valid would change how it is spelled, and it theirs.
  """
  kept = [int(i) for i in ids]
  while kept and tokenizer.settled(kept) != tokenizer.decode(kept):
    kept.pop()
  return kept or tokenizer.encode(['a'])[0].tolist() if len(ids) else []
