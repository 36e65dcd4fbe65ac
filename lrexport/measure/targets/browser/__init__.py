"""Measuring in a browser: the page and its scripts, the server that hands them out, and the process that holds Chromium."""
