"""Alignments that exist already: files of other aligners, read, checked and fitted to the transcript."""

from lst_prep.align.imported.aligner import ImportAligner

__all__ = ["ImportAligner"]
