"""The page of a preparation or an import: OUT/report.html to look at and listen to, OUT/report.md for terminals."""

from pathlib import Path

from lst_prep.report.listening import rejected_pieces
from lst_prep.report.speech import speech_sections
from lst_prep.report.state import read_state
from lst_prep.report.tables import configuration, facts, languages, rejections, sets, sources
from megatron_lst.files import write_text
from megatron_lst.pages import Page, Players, Section, Sounds, markdown, write_page

__all__ = ["write_report"]


def write_report(out: str | Path) -> Path:
    """Write OUT/report.html and OUT/report.md. Of a preparation that is not finished they show what there is.

    Returns:
        The HTML file.

    Raises:
        UserError: the folder holds no preparation.
    """
    state, sounds = read_state(out), Sounds()
    rejected = rejected_pieces(state, sounds)  # first: few, and there may be no room for all of the speech
    speech = speech_sections(state, sounds)
    listening = [Players("Rejected pieces, to listen to", rejected)] if rejected else []
    sections = [
        Section("Shard sets", sets(state)),
        Section("Sources", sources(state)),
        Section("Languages", languages(state)),
        *speech,
        Section("What was not used", [*rejections(state), *listening]),
        Section("Configuration", configuration(state)),
    ]
    page = Page(
        "Import of speech tokens" if state.imported else "Data preparation",
        f"{state.layout.out}, plan {state.fingerprint}",
        facts(state),
        state.missing,
        [section for section in sections if section.blocks],
        sounds.limit(),
    )
    seen = f"To look at and listen to: {state.layout.page}\n"
    write_text(state.layout.report, f"{markdown(page)}\n{seen}")
    return write_page(state.layout.page, page)
