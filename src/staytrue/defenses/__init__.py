"""One file per defense, found by file name; nothing else lives here."""
