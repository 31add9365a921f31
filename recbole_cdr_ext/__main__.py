"""``python -m recbole_cdr_ext COMMAND`` is ``recbole-cdr COMMAND``."""

import sys

from recbole_cdr_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
