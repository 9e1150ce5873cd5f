"""Runs for other tools: Parquet, Arrow, numpy. Each function says what its columns are."""

from jaxplain.export.arrays import to_npy as to_npy
from jaxplain.export.arrays import to_npz as to_npz
from jaxplain.export.arrays import to_numpy as to_numpy
from jaxplain.export.look import Exported as Exported
from jaxplain.export.tables import to_arrow as to_arrow
from jaxplain.export.tables import to_parquet as to_parquet
from jaxplain.export.tables import to_table as to_table
