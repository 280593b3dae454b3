"""The subcommands of ``edged`` that are more than a call."""
