"""The commands: one file for each group; `cli` names them. A command imports heavy packages only when it runs."""
