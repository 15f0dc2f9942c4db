"""`python -m aufacs_nb` is the command `aufacs`."""
from aufacs_nb.apps.cli import main

if __name__ == "__main__":
    main()
