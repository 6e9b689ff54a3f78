"""The commands of ``python -m harken``."""
