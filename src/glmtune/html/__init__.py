"""Building blocks of HTML pages: a builder that escapes, plots, and texts in both languages."""
