"""The commands, a file a trade; `cli` gives them their names. Nothing heavy is imported before a command needs it."""
