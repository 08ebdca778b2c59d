"""``python -m kvpredict`` is the command ``kvpredict``."""

from kvpredict.cli import main

if __name__ == "__main__":
    main()
