"""Tune as a job: `ray job submit --working-dir . -- python jobs/tune.py STUDY`.

Takes what `medray tune` takes. A job finds its cluster by itself, through the RAY_ADDRESS that Ray sets for it.
"""

import sys

from medray.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
