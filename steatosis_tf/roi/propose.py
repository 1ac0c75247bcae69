"""The ROI of one frame, the same for training and for prediction.

It knows neither manifests nor workers: `columns.py` proposes for whole studies.
"""

from dataclasses import dataclass

import numpy as np

from steatosis_tf.config import RoiConfig
from steatosis_tf.roi.anatomy.liver import liver_probability
from steatosis_tf.roi.anatomy.overlays import find_overlays
from steatosis_tf.roi.anatomy.parenchyma import propose_rectangle
from steatosis_tf.roi.sector import Fan, Sector, find_sector
from steatosis_tf.roi.views import Rectangle, around_sector, central_rectangle

#: Counts up whenever another ROI may be proposed for the same pixels and fan.
PROPOSAL_VERSION = 1


@dataclass(frozen=True)
class Roi:
    """What the model would see of a frame.

    Attributes:
        sector: of the frame.
        rectangle: in px of the frame; for beam space the one around the whole sector.
        overlay_mask: `(height, width)` bool, True on marks drawn inside the sector.
        quality: 0 to 1; of the liver proposal, or of beam space how much of the fan's border was
            seen (NaN if a person has set it). 0 for the middle of the sector.
        reason: why the sector's rectangle had to do, if it had.
    """

    sector: Sector
    rectangle: Rectangle
    overlay_mask: np.ndarray
    quality: float = 0.0
    reason: str = ""


def propose_roi(frame: np.ndarray, config: RoiConfig, fan: Fan | None = None) -> Roi:
    """The ROI of a frame, for training and for prediction alike.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        config: `method` "liver" looks for parenchyma, "sector" takes the sector's middle,
            "beamspace" all of it.
        fan: of the sector if a person has set it; None finds it.

    Raises:
        ValueError: if no ROI can be proposed; the text is the reason.

    Example:
        >>> from steatosis_tf.sources.phantom.study import simulate_patient
        >>> (frame,), _ = simulate_patient(
        ...     20.0, num_frames=1, generator=np.random.default_rng(0)
        ... )
        >>> roi = propose_roi(frame, RoiConfig(method="sector"))
        >>> roi.rectangle.height > 100
        True
    """
    sector = find_sector(frame) if fan is None else Sector.of_fan(fan, frame.shape)
    overlays = find_overlays(frame, sector.mask)
    if config.method == "beamspace":
        return Roi(sector, around_sector(sector.mask), overlays, sector.border_seen)
    if config.method == "sector":
        return Roi(sector, central_rectangle(sector), overlays)
    proposal = propose_rectangle(frame, sector, liver_probability(frame, sector), overlays)
    if proposal.rectangle is not None:
        return Roi(sector, proposal.rectangle, overlays, proposal.quality)
    if not config.sector_fallback:
        raise ValueError(proposal.reason)
    rectangle = central_rectangle(sector)
    return Roi(sector, rectangle, overlays, proposal.quality, proposal.reason)
