"""Reinterpretation of traced functions."""

from jaxplain.interpret.convolutions import canonical_convolutions as canonical_convolutions
