"""Corrections of answers, which users send to `/v1/feedback`."""

from typing import Any

from bmx.serve.apierror import ApiError, bad

ROUTE = '/v1/feedback'
LARGEST = 1e300  # of a number
KEYS = ('id', 'index', 'label', 'answer', 'rating')
MAX_ID = 200  # characters


def read_correction(body: Any) -> dict[str, Any]:
  """Returns a correction: `id`, and `label`, `answer` or `rating`, of the instance `index`.

  Raises ApiError for an unknown key, a value of another type, or a body that corrects nothing.
  """
  if not isinstance(body, dict):
    raise ApiError(400, 'expected a JSON object')
  for key in body:
    if key not in KEYS:
      raise bad(key, body[key], f'one of the keys {", ".join(KEYS)}', 'unsupported_parameter')
  name, index = body.get('id'), body.get('index', 0)
  if not isinstance(name, str) or not 0 < len(name) <= MAX_ID:
    raise bad('id', name, f'the id of an answer, a text of at most {MAX_ID} characters')
  if type(index) is not int or index < 0:
    raise bad('index', index, 'the number of an instance or choice, from 0')
  label, answer, rating = (body.get(k) for k in ('label', 'answer', 'rating'))
  if label is None and answer is None and rating is None:
    raise ApiError(400, 'expected one of label, answer and rating', param='label')
  if label is not None and not _is_plain(label):
    raise bad('label', label, 'a text or a finite number')
  if answer is not None and not isinstance(answer, str):
    raise bad('answer', answer, 'a text')
  if rating is not None and (isinstance(rating, bool | str) or not _is_plain(rating)):
    raise bad('rating', rating, 'a finite number, above 0 for a right answer')
  return dict(body)


def _is_plain(value: Any) -> bool:
  if isinstance(value, int | float):
    return abs(value) <= LARGEST  # neither NaN nor a whole number that no float holds
  return isinstance(value, str)
