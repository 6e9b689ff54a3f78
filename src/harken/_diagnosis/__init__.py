"""Explanations for errors and for the command line. The rest of harken imports this only when an error needs it."""
