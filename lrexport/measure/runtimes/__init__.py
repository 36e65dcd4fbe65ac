"""Runtimes that execute networks, one file each, behind one interface; sent to devices with the runner."""
