"""The running system: task files, events, the serve, join, learn and archive roles, and the command line."""
