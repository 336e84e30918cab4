"""From files on disk to rows of ids."""
