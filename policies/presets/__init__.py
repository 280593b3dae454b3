"""The policies that a configuration can name or extend without writing them."""
