"""Recipes: loading, overriding, and building the objects they describe. Imports no jax.

A recipe is a file with `get_config(variant='') -> ConfigDict`. A *part* of it is a dict with
`call`, an import path 'package.module:name'; its other keys are keyword arguments.
"""

from bmx.config.auto import settle
from bmx.config.describe import Line, lines
from bmx.config.overrides import apply
from bmx.config.parts import build, parameters, resolve
from bmx.config.planned import digest, planned
from bmx.config.recipes import About, about, check_variant, find, load, names
from bmx.config.spaces import Space, split
from bmx.config.stored import check_calls, complete, from_plain, from_stored, plain, trust
from bmx.config.words import base, check_words

__all__ = [
  'About',
  'Line',
  'Space',
  'about',
  'apply',
  'base',
  'build',
  'check_calls',
  'check_variant',
  'check_words',
  'complete',
  'digest',
  'find',
  'from_plain',
  'from_stored',
  'lines',
  'load',
  'names',
  'parameters',
  'plain',
  'planned',
  'resolve',
  'settle',
  'split',
  'trust',
]
