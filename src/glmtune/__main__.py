"""`python -m glmtune`, which torchrun needs."""

from glmtune.cli.main import main

if __name__ == "__main__":
    main()
