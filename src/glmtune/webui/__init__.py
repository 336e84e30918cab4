"""The web page. It starts work as ordinary commands and watches run folders; it never trains in its own process."""
