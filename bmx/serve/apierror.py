"""Errors of a server, in OpenAI's shape."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

MAX_SHOWN = 60  # characters of a value in a message
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = MAX_SHOWN


class ApiError(Exception):
  """An answer in OpenAI's shape of errors.

  Attributes:
    status: of HTTP.
    message: one sentence for people.
    kind: `type` of the error.
    param: key of the request.
    code: word for programs.
    headers: of the answer.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    kind: str = 'invalid_request_error',
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
  ):
    super().__init__(message)
    self.status, self.message, self.kind = status, message, kind
    self.param, self.code, self.headers = param, code, dict(headers or {})

  def body(self) -> dict[str, Any]:
    """Returns the JSON object of the answer."""
    return {'error': {'message': self.message, 'type': self.kind, 'param': self.param,
                      'code': self.code}}  # fmt: skip


def bad(param: str, value: Any, expected: str, code: str | None = None) -> ApiError:
  """Returns the error of a value that is out of its range."""
  text = f'{param[:MAX_SHOWN]}={shown(value)}: expected {expected}'
  return ApiError(400, text, param=param[:MAX_SHOWN], code=code)


def unknown_model(name: Any, served: Sequence[str]) -> ApiError:
  """Returns the error of a request for another model than the served ones."""
  names = ', '.join(map(repr, served))
  return ApiError(404, f'the model {shown(name)} does not exist: expected {names}',
                  param='model', code='model_not_found')  # fmt: skip


def shown(value: Any) -> str:
  """Returns a value of a request for a message: short, however large or deep it is."""
  text = SHORT.repr(value)
  return text if len(text) <= MAX_SHOWN else f'{text[: MAX_SHOWN - 3]}...'
