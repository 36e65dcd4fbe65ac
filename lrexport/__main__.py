"""``python -m lrexport``."""

from lrexport.cli.main import main

if __name__ == "__main__":
    main()
