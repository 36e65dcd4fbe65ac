"""Every file that lrexport reads or writes goes through here: atomic, hashed, and safe to open."""
