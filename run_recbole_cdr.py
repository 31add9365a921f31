"""Trains and evaluates one model, as RecBole's own script does: ``recbole-cdr run`` under RecBole's name.

python run_recbole_cdr.py --model=I2VAE --dataset=ml100k_genres
"""

import sys

from recbole_cdr_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
