"""Classes of primitives: what a table of rules says of a class, it says of all of these.

A name in a table comes first, then the class of the primitive. A primitive in no class has no rule
but one that a table names.
"""

from collections.abc import Mapping
from types import MappingProxyType

# Moves, copies or drops elements: every part of a value moves alike.
STRUCTURE = """
    broadcast_in_dim concatenate copy copy_p device_put dynamic_slice dynamic_update_slice
    expand_dims gather neg optimization_barrier pad pcast pvary real imag conj reduce_precision
    reshape rev select_n sharding_constraint slice split squeeze stop_gradient transpose unstack
    scatter scatter-add mesh_cast reshard stack tile complex name
""".split()
# Sums of several elements.
MIXING = "cumsum reduce_sum reduce_window_sum fft psum".split()
# Linear in each of two operands.
BILINEAR = "mul dot_general conv_general_dilated".split()
# A function of one element each. Those with a pole or an edge of their domain near 0 are not here:
# a part of a value can lie where the value itself never does.
ELEMENTWISE = """
    abs asinh atan atan2 cbrt ceil clamp cos cosh erf erfc exp exp2 expm1 floor integer_pow
    is_finite logistic max min nextafter one_minus_square rem round sign sin sinh square tan tanh
""".split()
# Elementwise too, inside a function of one value that is taken whole.
WITHIN = """
    acos acosh add add_any and asin atanh convert_element_type copy copy_p digamma div eq eq_to
    erf_inv ge gt le le_to lgamma log log1p log2 lt lt_to mul ne neg not or pow reduce_precision
    rsqrt select_n sqrt stop_gradient sub xor
""".split()
NORMALIZER = ("rsqrt", "sqrt")  # what a value is divided by is made with
# Picks elements by comparing them.
SWITCH = """
    cummax cummin reduce_max reduce_min reduce_window_max reduce_window_min sort top_k
""".split()
# No float comes out: what is compared is the total.
HELD = """
    and argmax argmin eq ge gt is_finite le lt ne not or reduce_and reduce_or reduce_xor xor
    population_count eq_to le_to lt_to shift_left shift_right_arithmetic shift_right_logical clz
    bitcast_convert_type debug_callback debug_print
""".split()

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        name: kind
        for kind, names in (
            ("structure", STRUCTURE),
            ("mixing", MIXING),
            ("bilinear", BILINEAR),
            ("elementwise", ELEMENTWISE),
            ("switch", SWITCH),
            ("hold", HELD),
        )
        for name in names
    }
    | {
        "add": "sum",
        "add_any": "sum",
        "sub": "sum",
        "div": "quotient",
        "convert_element_type": "convert",
        "sqrt": "root",
        "rsqrt": "normalizer",
    }
)

POINTWISE = frozenset((*ELEMENTWISE, *WITHIN))
PARTIAL = frozenset(
    "acos acosh asin atanh digamma erf_inv lgamma log log1p log2 pow rsqrt sqrt".split()
)

# Which operands of a structural primitive are data; the rest says what to do with it.
DATA: Mapping[str, slice | tuple[int, ...]] = MappingProxyType(
    {
        "select_n": slice(1, None),
        "dynamic_slice": (0,),
        "dynamic_update_slice": (0, 1),
        "gather": (0,),
        "scatter": (0, 2),
        "scatter-add": (0, 2),
    }
)

# Zero of nothing but zeros, or of one zero among its operands.
KEEPS_ZERO = frozenset(
    """
    abs add asin asinh atan broadcast_in_dim cbrt ceil concatenate convert_element_type copy copy_p
    cumsum erf expand_dims expm1 floor gather log1p max min neg pad real reduce_max
    reduce_precision reduce_sum reshape rev round select_n sign sin sinh slice split sqrt square
    squeeze stop_gradient sub tan tanh transpose unstack stack tile
    complex
    """.split()
)
ABSORBS_ZERO = frozenset({"mul", "dot_general", "conv_general_dilated"})
