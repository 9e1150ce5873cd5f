"""Flax models behind one small interface, bundled or loaded from a directory."""

from jaxplain.models.types import TextModel as TextModel
from jaxplain.models.types import Tokens as Tokens
