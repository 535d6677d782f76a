"""What commands show on a terminal: progress, tables, one line for what went wrong."""
