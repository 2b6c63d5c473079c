"""`python -m dedetr_cli` is `dedetr`."""

from dedetr_cli.app import main

if __name__ == "__main__":
    main()
