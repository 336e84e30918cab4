"""`python -m glmtune`, which torchrun needs."""

from glmtune.cli import main

if __name__ == "__main__":
    main()
