"""Texts for language modelling: those that the suite ships, and those of the user. Split by document, read as bytes."""

from tasks.corpus.documents import Corpus, Documents
from tasks.corpus.external import load_external
from tasks.corpus.shipped import load_shipped, read_manifest

__all__ = ["Corpus", "Documents", "load_external", "load_shipped", "read_manifest"]
