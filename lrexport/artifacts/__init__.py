"""All file access of lrexport: atomic writes, hashes, and safe reading of foreign files."""
