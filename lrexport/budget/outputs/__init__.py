"""A report in each format, one file per format. Names are escaped for the format they appear in."""
