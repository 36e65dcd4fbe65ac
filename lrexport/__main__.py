"""``python -m lrexport``, which looks for no modules in the current folder, as the command ``lrexport`` does not."""

import os
import sys

if __name__ == "__main__":
    if sys.path and sys.path[0] == os.getcwd() and not getattr(sys.flags, "safe_path", False):
        # Python puts it there, and a numpy.py in a folder that somebody else filled would run. This package is loaded.
        del sys.path[0]

    from lrexport.cli.main import main

    main()
