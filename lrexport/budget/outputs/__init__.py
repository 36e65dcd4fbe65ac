"""A report in each of its formats, one file a format. Names are escaped for the format they appear in."""
