"""Groups of units and how they join: agglomerative contextual decomposition of any group score.

A unit is whatever joins: a word, a pixel, a tile, a superpixel, a feature.
"""

from jaxplain.hierarchy.contextual import Agglomeration as Agglomeration
from jaxplain.hierarchy.contextual import acd as acd
from jaxplain.hierarchy.growth import PAPER_IMAGES as PAPER_IMAGES
from jaxplain.hierarchy.growth import PAPER_TEXT as PAPER_TEXT
from jaxplain.hierarchy.growth import PUBLISHED_TEXT as PUBLISHED_TEXT
from jaxplain.hierarchy.growth import Hierarchy as Hierarchy
from jaxplain.hierarchy.growth import after_third as after_third
from jaxplain.hierarchy.growth import agglomerate as agglomerate
from jaxplain.hierarchy.growth import last_five as last_five
from jaxplain.hierarchy.growth import published_images as published_images
from jaxplain.hierarchy.scores import build_up_score as build_up_score
from jaxplain.hierarchy.scores import class_difference as class_difference
from jaxplain.hierarchy.scores import occlusion_score as occlusion_score
from jaxplain.hierarchy.scores import tabulated as tabulated
from jaxplain.hierarchy.tree import components_at as components_at
from jaxplain.hierarchy.tree import heights as heights
from jaxplain.hierarchy.tree import members as members
from jaxplain.hierarchy.tree import to_tree as to_tree
from jaxplain.hierarchy.units import chain as chain
from jaxplain.hierarchy.units import expand as expand
from jaxplain.hierarchy.units import grid as grid
from jaxplain.hierarchy.units import touching as touching
