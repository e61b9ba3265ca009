"""All architectures of Hugging Face that bmx reads and writes, by their names in config.json."""

from bmx.adapt.families import TEXT
from bmx.adapt.pairs import PAIRS
from bmx.adapt.seq2seq import SEQ2SEQ
from bmx.adapt.vision import VISION
from bmx.adapt.whisper import SPEECH

ARCHITECTURES = TEXT | SEQ2SEQ | VISION | PAIRS | SPEECH
