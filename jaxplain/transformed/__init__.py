"""Explanations in another domain: which frequencies, scales or components made f(x) what it is.

`transformed(method, transform)` is `method(f ∘ inverse, forward(x))`. A `Transform` is any pair of
pure functions; here are those of Fourier, wavelets, and dictionaries such as PCA's and NMF's.

One reduction serves all methods: the score of a group of coefficients is the signed sum of theirs
(`group_sum`), in the units of f. A complex coefficient is the group of its two parts.
"""

from jaxplain.transformed.dictionary import linear as linear
from jaxplain.transformed.dictionary import nonnegative as nonnegative
from jaxplain.transformed.domain import Transform as Transform
from jaxplain.transformed.domain import group_sum as group_sum
from jaxplain.transformed.domain import in_domain as in_domain
from jaxplain.transformed.domain import leaf_groups as leaf_groups
from jaxplain.transformed.domain import transformed as transformed
from jaxplain.transformed.frequency import bands as bands
from jaxplain.transformed.frequency import fourier as fourier
from jaxplain.transformed.frequency import frequencies as frequencies
from jaxplain.transformed.wavelet import wavelets as wavelets
