"""`python -m medray`."""

from medray.cli import main

if __name__ == "__main__":
    main()
