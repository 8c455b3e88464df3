"""One file per defense, found by its name; the folder holds no other code."""
