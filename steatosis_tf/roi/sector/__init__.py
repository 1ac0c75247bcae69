"""The echo sector of a frame, and the geometry of its beams."""

from steatosis_tf.roi.sector.find import Sector, find_sector
from steatosis_tf.roi.sector.geometry import Fan

__all__ = ["Fan", "Sector", "find_sector"]
