"""Where cells are run: worker processes on this machine."""
