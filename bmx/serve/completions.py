"""Completions of a served model: prompts to requests of the engine, its tokens to texts."""

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from bmx.core.errors import InputError
from bmx.core.types import facts_of
from bmx.data.text.documents import whole
from bmx.data.text.tokenizer import Tokenizer
from bmx.serve.apierror import ApiError
from bmx.serve.openai import Asked
from bmx.serve.rows import Output, Request
from bmx.serve.service import api_errors, threadsafe
from bmx.serve.text import Detokenizer, Options, encode_prompts, stop_ids
from bmx.serve.worker import Worker


class Piece(NamedTuple):
  """A new part of one choice.

  Attributes:
    index: of the choice.
    text: new text; tokens may be held back until their characters are complete.
    tokens: ids generated.
    logprobs: of these ids.
    finish: '' while tokens may follow, else 'stop' or 'length'.
  """

  index: int
  text: str
  tokens: list[int]
  logprobs: list[float]
  finish: str


@dataclasses.dataclass(frozen=True)
class Job:
  """One choice: a request of the engine, and how its tokens become text.

  Attributes:
    request: of the engine.
    stop: texts that end the answer.
    ends: ids of the stops that are special tokens, which no text shows.
  """

  request: Request
  stop: tuple[str, ...]
  ends: frozenset[int] = frozenset()


class Completions:
  """Texts of one model.

  Args:
    names: of the model, in requests and answers, and of its adapters, in their order.
    worker: of the engine.
    tokenizer: of the model.
    options: defaults of requests: the config word `generate`.
    render: messages -> the text of a chat before the answer; None: the model has no template.
    chat_stop: texts that end an answer of a chat.
  """

  def __init__(
    self,
    names: Sequence[str],
    worker: Worker,
    tokenizer: Tokenizer,
    options: Options,
    render: Callable[[Sequence[Any]], str] | None = None,
    chat_stop: Sequence[str] = (),
  ):
    self.names, self.worker = tuple(names), worker
    self.tokenizer, self.options = tokenizer, options
    self._render, self._chat_stop = render, tuple(chat_stop)
    self.facts = dataclasses.replace(
      facts_of(worker.engine.model), max_seq_len=worker.engine.context
    )

  def jobs(self, asked: Asked) -> list[Job]:
    """Returns a job for each choice of each prompt.

    Raises ApiError for a prompt that the model cannot continue.
    """
    count, most = max(1, len(asked.prompts)) * asked.choices, self.worker.most
    if count > most:  # before any of them is encoded
      raise ApiError(400, f'{count} choices of all prompts: expected at most {most}; send several '
                     'requests', param='n', code='too_many_choices')  # fmt: skip
    prompts = self._encoded(asked)
    stop = (*asked.stop, *self._chat_stop) if asked.messages else asked.stop
    seed = asked.seed if asked.seed >= 0 else secrets.randbelow(2**31)
    limit = asked.max_new_tokens or self.worker.engine.context
    jobs, adapter = [], self.names.index(asked.model)
    try:
      ends = frozenset(stop_ids(self.tokenizer, stop))
    except InputError as error:
      raise ApiError(400, str(error), param='stop', code='invalid_stop') from None
    for prompt in prompts:
      for _ in range(asked.choices):
        request = Request(tuple(prompt), limit, asked.sampling, seed, len(jobs), adapter)
        jobs.append(Job(request, stop, ends))
    try:
      for job in jobs:
        self.worker.engine.check(job.request)
    except InputError as error:
      raise _invalid(error) from None
    return jobs

  def _encoded(self, asked: Asked) -> list[list[int]]:
    if asked.messages and self._render is None:
      raise ApiError(
        400,
        'the model has no chat template: expected /v1/completions, or a run that has a template',
        code='no_chat_template',
      )
    try:
      if asked.messages and self._render is not None:  # the template writes every special token
        text = whole(self._render(asked.messages), 'messages')
        return [self.tokenizer.encode([text])[0].tolist()]
      return [self._ids(prompt, n) for n, prompt in enumerate(asked.prompts, 1)]
    except InputError as error:
      raise _invalid(error) from None

  def _ids(self, prompt: str | tuple[int, ...], number: int) -> list[int]:
    if not isinstance(prompt, str):
      return list(prompt)
    return encode_prompts([prompt], self.tokenizer, self.facts, [f'prompt {number}'])[0]

  async def pieces(self, jobs: Sequence[Job], timeout: float) -> AsyncIterator[Piece]:
    """Yields the new parts of all jobs; a caller that stops reading cancels them.

    Args:
      jobs: see `jobs`.
      timeout: seconds for all of them.

    Raises:
      ApiError: 429, 503 or 504.
    """
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue()
    texts = [Detokenizer(self.tokenizer, job.stop, job.request.prompt) for job in jobs]
    left, tickets = set(range(len(jobs))), {}
    deadline = loop.time() + timeout

    def sink(index: int) -> Callable[[Output | Exception], None]:
      return threadsafe(lambda item: inbox.put_nowait((index, item)))

    try:
      with api_errors(timeout):
        for index, job in enumerate(jobs):
          tickets[index] = self.worker.submit(job.request, sink(index))
        while left:
          # Not asyncio.timeout: another task may read the later parts.
          index, item = await asyncio.wait_for(inbox.get(), max(0.0, deadline - loop.time()))
          if isinstance(item, Exception):
            raise item
          if index not in left:
            continue
          piece = self._piece(index, item, jobs[index], texts[index])
          if piece.finish:
            left.discard(index)
            if not item.finish:
              self.worker.cancel(tickets[index])
          yield piece
    finally:
      for index in left & tickets.keys():
        self.worker.cancel(tickets[index])

  def _piece(self, index: int, output: Output, job: Job, text: Detokenizer) -> Piece:
    """Returns a part of a choice, without the tokens behind its end."""
    part, read, ended = '', 0, False
    for token in output.tokens:
      read, ended = read + 1, token in job.ends
      if not ended and token not in self.worker.engine.ends:
        part += text.add([token])
      if ended or text.stopped:
        break
    finish = 'stop' if ended or text.stopped else output.finish
    part += text.flush() if finish else ''
    return Piece(index, part, output.tokens[:read], output.logprobs[:read], finish)

  def token_text(self, token: int) -> str:
    """Returns the text of one token."""
    return self.tokenizer.decode([token])


def _invalid(error: InputError) -> ApiError:
  text = str(error)
  code = 'context_length_exceeded' if 'max_seq_len' in text else 'invalid_prompt'
  return ApiError(400, text, code=code)
