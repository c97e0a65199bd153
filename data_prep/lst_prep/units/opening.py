"""A codebook that is there already, with the extractor that its file names."""

from lst_prep.config import UnitsConfig
from lst_prep.units import Codebook, Extractor, make_extractor
from lst_prep.units.whisper import is_embedded
from megatron_lst.errors import UserError


def extractor_of(book: Codebook, model: str, **options: str) -> Extractor:
    """The extractor of a codebook's features, in the settings that its file says.

    Args:
        model: path of the HuBERT or Whisper whose features the codebook clusters; empty: the Whisper encoder that comes
            with the repository.
        options: more of `UnitsConfig`, such as the device.

    Raises:
        UserError: no model, or another one than the codebook's.
    """
    if not model and (book.extractor == "hubert" or (book.extractor == "whisper" and not is_embedded(book))):
        raise UserError(
            f"the codebook is of {book.extractor} features: give the folder of their model (--units-model); an export "
            f"that was made with it holds it"
        )
    config = UnitsConfig(extractor=book.extractor, model=model, rate=str(book.rate), **book.settings, **options)  # type: ignore[arg-type]
    extractor = make_extractor(config)
    try:
        book.require(extractor)
    except UserError as error:
        older = "; its file, of an older version, does not say its layer, so the default was taken"
        hint = older if extractor.settings and not book.settings else ""
        raise UserError(f"units model {model or 'of the repository'}: {error}{hint}") from None
    return extractor
