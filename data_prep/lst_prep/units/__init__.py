"""Audio to units: an extractor gives one feature vector a frame, a codebook gives each its nearest entry."""

from lst_prep.config import UnitsConfig
from lst_prep.units.codebook import Codebook
from lst_prep.units.extractor import Extractor
from megatron_lst.errors import UserError

__all__ = ["Codebook", "Extractor", "make_extractor"]


def make_extractor(config: UnitsConfig) -> Extractor:
    """The extractor that the config names. Raises UserError when its model cannot be loaded."""
    if config.extractor == "mfcc":
        from lst_prep.units.mfcc import MfccExtractor

        return MfccExtractor(config.hertz)
    if config.extractor == "whisper":
        from lst_prep.units.whisper import WhisperExtractor

        return WhisperExtractor(config)
    if config.extractor != "hubert":
        raise UserError(f"units of {config.extractor!r} are made elsewhere; those of mfcc, whisper and hubert here")
    from lst_prep.units.hubert import HubertExtractor

    return HubertExtractor(config)
